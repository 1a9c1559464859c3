"""Options of the low-rank update."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftc.spec.delta import DeltaOptions
from peftc.spec.sizes import Size


class LowRank(DeltaOptions):
    """A low-rank update of a projection or a token embedding: B(A(x)). `compose` scales it."""

    kind: ClassVar[str] = "low_rank"
    sites: ClassVar[tuple[str, ...]] = (
        "*.q", "*.k", "*.v", "ffn.gate", "ffn.up", "ffn.down", "embed.out", "module",
    )  # fmt: skip
    composes: ClassVar[tuple[str, ...]] = ("add",)
    form: ClassVar[str | None] = "parallel"
    formula: ClassVar[str] = "h + s*B(A(x))"
    merges: ClassVar[bool] = True
    by_task: ClassVar[tuple[str, ...] | None] = ("rank", "init")

    rank: Size = Field(description="Rank of the update: a number, or {default: 8, last 4: 4}.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what A reads.")
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="How A is drawn; B is zero at the start."
    )
    bias: bool = Field(False, description="Whether B has a bias, which is scaled as B is.")
