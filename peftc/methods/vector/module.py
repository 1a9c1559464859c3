"""The learned vector that scales or shifts a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peftc.pieces.base import Piece, gathered


class Vector(Piece):
    """delta = l, one number a feature: h <- h * l (ones at the start) or h + l (zeros).

    l: (width,), h: (..., width). Source: Liu et al. 2022, "(IA)3", for the product.
    """

    kind: ClassVar[str] = "vector"
    why_apart: ClassVar[str] = "no weight beside it could take it up"
    reads_input: ClassVar[bool] = False

    def __init__(self, width: int, *, init: str = "ones") -> None:
        super().__init__()
        self.l = nn.Parameter(torch.ones(width) if init == "ones" else torch.zeros(width))

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The vector that a spec's options describe."""
        return cls(width, init=options.init)

    def scale_output(self, factor: Tensor) -> bool:
        with torch.no_grad():
            self.l.mul_(factor)
        return True

    def forward(self) -> Tensor:
        return self.l

    @classmethod
    def banked(cls, pieces: Sequence[Self], rows: Tensor, *inputs: Tensor) -> Tensor:
        """(batch, 1, width): a vector a row, the same for all its tokens."""
        return gathered([p.l for p in pieces], rows).unsqueeze(1)
