"""Models that cannot be captured, each for one reason."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OddConfig(PreTrainedConfig):
    """A width, and what is odd."""

    model_type = "odd"

    def __init__(self, odd="", vocab_size=30, hidden_size=12, **kwargs):
        super().__init__(**kwargs)
        self.odd, self.vocab_size, self.hidden_size = odd, vocab_size, hidden_size


class OddModel(PreTrainedModel):
    """An embedding and a linear, with a step between them that a graph cannot hold."""

    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        h = self.embed(input_ids)
        if self.config.odd == "branch" and h.sum() > 0:
            h = -h
        if self.config.odd == "chunks":
            h = h + h[:, :64].mean(1, keepdim=True) * (1 + (h.shape[1] > 64))
        return BaseModelOutput(last_hidden_state=self.linear(h))


class OddVideo(OddModel):
    """A model of something else than text, images and sound."""

    main_input_name = "pixel_values_videos"

    def forward(self, pixel_values_videos):
        return BaseModelOutput(last_hidden_state=torch.relu(pixel_values_videos))
