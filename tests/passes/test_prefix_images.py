"""A prefix where no tokens are embedded."""

from __future__ import annotations

import torch
from transformers import ViTConfig, ViTModel

import peftc


def test_an_mlp_is_as_wide_as_the_queries_of_an_image_model():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=24,
        patch_size=8,
    )
    model = ViTModel(config).eval()
    graph = peftc.apply("prefix", model, set={"tokens": 3, "hidden": 8})
    pixels = torch.randn(2, 3, 24, 24)
    found = graph(pixel_values=pixels)["last_hidden_state"]
    assert not torch.allclose(found, model(pixel_values=pixels)["last_hidden_state"])
    found.square().mean().backward()
    trained = peftc.trainable(graph)
    assert all(p.grad is not None for p in trained.values())
    assert 24 in {s for p in trained.values() for s in p.shape}
