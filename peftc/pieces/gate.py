"""Trained gates between a value and its delta."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftc.pieces.base import banked_linear, gathered


class Gate(nn.Module):
    """(1 - g) h + g delta, written h + g (delta - h).  h, delta: (..., width).

    g is a trained number (one, or with `width` one a feature), which starts at `init`. With
    `in_width` it is computed from x: (..., in_width), g = sigmoid(x W^T + b), with W = 0 at the
    start and sigmoid(b) = init. Source: Mao et al. 2022, "UniPELT", section 3.2.
    """

    def __init__(self, init: float, width: int | None = None, in_width: int | None = None) -> None:
        super().__init__()
        self.reads = in_width is not None
        if in_width is None:
            self.g = nn.Parameter(torch.full((width or 1,), float(init)))
        else:
            self.linear = nn.Linear(in_width, width or 1)
            nn.init.zeros_(self.linear.weight)
            nn.init.constant_(self.linear.bias, math.log(init / (1 - init)))

    def opening(self, x: Tensor | None) -> Tensor:
        """g: (width or 1,), or (..., width or 1) where it reads x."""
        return self.g if x is None else torch.sigmoid(self.linear(x))

    def forward(self, h: Tensor, delta: Tensor, x: Tensor | None = None) -> Tensor:
        return h + self.opening(x) * (delta - h)

    @classmethod
    def openings(cls, pieces: Sequence[Gate], rows: Tensor, x: Tensor | None) -> Tensor:
        """G of gate rows[b] for row b: (batch, 1, width or 1), or (batch, length, width or 1)."""
        if x is None:
            return gathered([p.g for p in pieces], rows).unsqueeze(1)
        return torch.sigmoid(banked_linear([p.linear for p in pieces], rows, x))

    @classmethod
    def banked(cls, pieces: Sequence[Gate], rows: Tensor, *inputs: Tensor) -> Tensor:
        """A gate a row."""
        h, delta, *x = inputs
        return h + cls.openings(pieces, rows, *(x or [None])) * (delta - h)


class Valve(Gate):
    """g delta, to be added to h or attended to: with g = 0 there is no delta.

    delta: (..., width), or (batch, heads, length, n) with x: (batch, length, in_width).
    """

    def forward(self, delta: Tensor, x: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return by_heads(self.opening(x), delta) * delta

    @classmethod
    def banked(cls, pieces: Sequence[Gate], rows: Tensor, *inputs: Tensor) -> Tensor:
        """A gate a row."""
        delta, *x = inputs
        return by_heads(cls.openings(pieces, rows, *(x or [None])), delta) * delta


def by_heads(g: Tensor, delta: Tensor) -> Tensor:
    """(batch, length, 1) -> (batch, 1, length, 1), one for all heads, where delta has heads."""
    return g.unsqueeze(1) if g.dim() > 1 and delta.dim() > g.dim() else g
