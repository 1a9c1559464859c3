"""The soft prompt in front of the input embeddings."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peftc.pieces.base import Piece


class Prompt(Piece):
    """h with rows `start` .. `start + tokens` replaced by the prompt: [P; h] over dummy ids.

    h: (batch, length, width) with `tokens` dummy rows already in place, P: (tokens, width).
    P is uniform in [-0.5, 0.5], N(0, 0.02^2), or given rows of the embedding table.
    Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".
    """

    kind: ClassVar[str] = "prompt"
    why_apart: ClassVar[str] = "rows in front of the input are no weights of the model"

    def __init__(
        self,
        tokens: int,
        width: int,
        *,
        start: int = 0,
        init: str = "uniform",
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.start = start
        self.tokens = tokens
        self.embedding = nn.Parameter(torch.empty(tokens, width))
        if init == "uniform":
            nn.init.uniform_(self.embedding, -0.5, 0.5)
        else:
            nn.init.normal_(self.embedding, std=0.02)
        self.encoder = encoder

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The prompt that a spec's options describe; vocabulary rows are copied in by the pass."""
        start = 1 if options.place == "after_first" else 0
        encoder = None
        if options.encoder is not None:
            encoder = PromptEncoder(width, options.encoder.hidden, options.encoder.kind)
        return cls(options.tokens, width, start=start, init=options.init, encoder=encoder)

    def rows(self) -> Tensor:
        """The prompt itself, (tokens, width)."""
        return self.embedding if self.encoder is None else self.encoder(self.embedding)

    def forward(self, h: Tensor) -> Tensor:
        rows = self.rows().to(h.dtype).unsqueeze(0).expand(h.shape[0], -1, -1)
        rest = h[:, self.start + self.tokens :]
        parts = [h[:, : self.start], rows, rest] if self.start else [rows, rest]
        return torch.cat(parts, 1)


class PromptEncoder(nn.Module):
    """The prompt encoder of P-tuning: an MLP of three layers, or a bidirectional LSTM and an MLP.

    x: (tokens, width) -> (tokens, width). Dropped by folding, which keeps its output.
    Source: Liu et al. 2021, "GPT Understands, Too", section 2.2.
    """

    def __init__(self, width: int, hidden: int, kind: str = "mlp") -> None:
        super().__init__()
        self.lstm = None
        if kind == "lstm":
            self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
            layers = [nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)]
        else:
            layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
            layers.append(nn.Linear(hidden, width))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.lstm is not None:
            x = self.lstm(x.unsqueeze(0))[0].squeeze(0)
        return self.mlp(x)
