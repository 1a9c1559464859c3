"""The learned gate between a value and its delta."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftc.pieces.base import gathered


class Gate(nn.Module):
    """(1 - g) h + g delta, written h + g (delta - h).  h, delta: (..., width).

    g starts at `init`, one number (per "scalar") or one a feature (per "channel").
    Source: Mao et al. 2022, "UniPELT", in its unconditioned form.
    """

    def __init__(self, init: float, width: int | None = None) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.full((width or 1,), float(init)))

    def forward(self, h: Tensor, delta: Tensor) -> Tensor:
        return h + self.g * (delta - h)

    @classmethod
    def banked(cls, pieces: Sequence[Gate], rows: Tensor, *inputs: Tensor) -> Tensor:
        """A gate a row."""
        h, delta = inputs
        return h + gathered([p.g for p in pieces], rows).unsqueeze(1) * (delta - h)
