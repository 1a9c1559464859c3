"""The low-rank update of a projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from peftc.pieces.base import Piece, gathered


class LowRank(Piece):
    """delta(x) = (dropout(x) A^T) B^T + b.  x: (..., in), A: (rank, in), B: (out, rank), b: (out,).

    At an embedding x are ids, (...), and x A^T the rows of A^T that they name. b is there with
    `bias`. B = b = 0 at the start, so delta = 0; A is Kaiming-uniform, or N(0, 1/rank) for
    "gaussian".
    The scale alpha / rank belongs to the composition. Source: Hu et al. 2021, "LoRA".
    """

    kind: ClassVar[str] = "low_rank"
    why_apart: ClassVar[str] = "no weight beside it could take it up"
    looks_up: ClassVar[bool] = True

    def __init__(
        self,
        in_width: int,
        width: int,
        rank: int,
        *,
        dropout: float = 0.0,
        init: str = "kaiming",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_width))
        self.B = nn.Parameter(torch.zeros(width, rank))
        if init == "gaussian":
            nn.init.normal_(self.A, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.b = nn.Parameter(torch.zeros(width)) if bias else None
        self.dropout = nn.Dropout(dropout) if dropout else None

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The low-rank update that a spec's options describe."""
        return cls(
            in_width, width, options.rank,
            dropout=options.dropout, init=options.init, bias=options.bias,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return functional.linear(functional.embedding(x, self.A.T), self.B, self.b)
        if self.dropout is not None:
            x = self.dropout(x)
        return functional.linear(functional.linear(x, self.A), self.B, self.b)

    def scale_output(self, factor: Tensor) -> bool:
        with torch.no_grad():
            self.B.mul_(factor[:, None] if factor.dim() else factor)
            if self.b is not None:
                self.b.mul_(factor)
        return True

    @classmethod
    def banked(cls, pieces: Sequence[Self], rows: Tensor, *inputs: Tensor) -> Tensor:
        """A smaller rank is padded with zeros, which add nothing."""
        (x,), first = inputs, pieces[0]
        if first.dropout is not None:
            x = first.dropout(x)
        a, b = gathered([p.A for p in pieces], rows), gathered([p.B for p in pieces], rows)
        y = torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))
        if first.b is not None:
            y = y + gathered([p.b for p in pieces if p.b is not None], rows).unsqueeze(1)
        return y

    def merged(self, rows: slice = slice(None)) -> Tensor:
        """B A, (out, in): what the update adds to a weight of that shape, or to rows of it."""
        return self.B[rows] @ self.A
