"""The bottleneck adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from peftc.pieces.base import (
    ACTIVATIONS,
    Piece,
    banked_linear,
    banked_norm,
    linear,
    scale_layer,
)

STD = 1e-2  # Houlsby et al. 2019, section 3.6


class Bottleneck(Piece):
    """delta(x) = up(act(down(x))).  x: (..., in), down: (dim, in), up: (width, dim).

    At the start delta = 0 exactly for init "zero_up" (down ~ N(0, 1e-2) truncated) and "lora"
    (down Kaiming-uniform); "houlsby" draws both from N(0, 1e-2) truncated at two sigma, so the
    delta is near zero, as in the paper. Biases start at zero.
    Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP".
    """

    kind: ClassVar[str] = "bottleneck"
    why_apart: ClassVar[str] = "a nonlinearity lies between its projections"

    def __init__(
        self,
        in_width: int,
        width: int,
        dim: int,
        *,
        act: str = "relu",
        init: str = "zero_up",
        bias: bool = True,
        dropout: float = 0.0,
        norm: str = "none",
    ) -> None:
        super().__init__()
        down_std = None if init == "lora" else STD
        self.before = nn.LayerNorm(in_width) if norm == "before" else None
        self.down = linear(in_width, dim, bias=bias, std=down_std)
        self.act = ACTIVATIONS[act]
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.up = linear(dim, width, bias=bias, std=STD if init == "houlsby" else 0.0)
        self.after = nn.LayerNorm(width) if norm == "after" else None

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The bottleneck that a spec's options describe."""
        return cls(
            in_width,
            width,
            options.dim,
            act=options.act,
            init=options.init,
            bias=options.bias,
            dropout=options.dropout,
            norm=options.norm,
        )

    def scale_output(self, factor: Tensor) -> bool:
        return scale_layer(self.up if self.after is None else self.after, factor)

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = self.before(x)
        x = self.act(self.down(x))
        if self.dropout is not None:
            x = self.dropout(x)
        x = self.up(x)
        return x if self.after is None else self.after(x)

    @classmethod
    def banked(cls, pieces: Sequence[Self], rows: Tensor, *inputs: Tensor) -> Tensor:
        """A smaller bottleneck is padded: what its spare features give, `up` weighs with zero."""
        (x,), first = inputs, pieces[0]
        if first.before is not None:
            x = banked_norm([p.before for p in pieces if p.before is not None], rows, x)
        x = first.act(banked_linear([p.down for p in pieces], rows, x))
        if first.dropout is not None:
            x = first.dropout(x)
        x = banked_linear([p.up for p in pieces], rows, x)
        if first.after is not None:
            x = banked_norm([p.after for p in pieces if p.after is not None], rows, x)
        return x
