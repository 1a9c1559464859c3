"""The weight-decomposed low-rank update of a projection."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peftc.methods.low_rank.module import LowRank


class Dora(LowRank):
    """h + (r - 1) (h - b) + r s (x A^T) B^T, with r = m / |W + s B A|, a norm for each row.

    That is m (W + s B A) x / |W + s B A| + b for h = W x + b. x: (..., in), W: (out, in),
    m: (out,). m = |W| and B = 0 at the start, so r = 1 and the sum is h. The norm has no gradient,
    as in the paper (section 4.3). Source: Liu et al. 2024, "DoRA".
    """

    kind: ClassVar[str] = "dora"
    reads_weight: ClassVar[bool] = True
    looks_up: ClassVar[bool] = False

    def __init__(
        self,
        in_width: int,
        width: int,
        rank: int,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        init: str = "kaiming",
    ) -> None:
        super().__init__(in_width, width, rank, dropout=dropout, init=init)
        self.m = nn.Parameter(torch.ones(width))
        self.scale = float(scale)

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The update that a spec's options describe."""
        return cls(
            in_width, width, options.rank,
            scale=options.scale, dropout=options.dropout, init=options.init,
        )  # fmt: skip

    def start(self, weight: Tensor) -> None:
        """Set m = |W|, which makes the start exact. weight: (out, in)."""
        with torch.no_grad():
            self.m.copy_(torch.linalg.vector_norm(weight, dim=1))

    def direction(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """W + s B A, or rows of it. weight: these rows of W."""
        return weight + self.scale * self.merged(rows)

    def ratio(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """The factor of each row, r = m / |W + s B A|, (out,)."""
        norm = torch.linalg.vector_norm(self.direction(weight, rows), dim=1)
        return self.m[rows] / norm.detach()

    def scale_output(self, factor: Tensor) -> bool:
        return False  # the delta is no multiple of any of its parameters

    def forward(self, x: Tensor, *linear: Tensor) -> Tensor:
        """The delta, from x and the linear's h, W and b where it has one."""
        h, weight, *bias = linear
        r = self.ratio(weight)
        base = h - bias[0] if bias else h
        return (r - 1) * base + r * self.scale * super().forward(x)
