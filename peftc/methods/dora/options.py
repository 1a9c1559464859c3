"""Options of the weight-decomposed low-rank update."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftc.spec.delta import DeltaOptions
from peftc.spec.sizes import Size


class Dora(DeltaOptions):
    """A low-rank update of a projection's direction, and its magnitude trained apart (DoRA)."""

    kind: ClassVar[str] = "dora"
    sites: ClassVar[tuple[str, ...]] = (
        "*.q", "*.k", "*.v", "ffn.gate", "ffn.up", "ffn.down", "module",
    )  # fmt: skip
    composes: ClassVar[tuple[str, ...]] = ("add",)
    form: ClassVar[str | None] = "parallel"
    formula: ClassVar[str] = "m*(W + s*B*A)x / |W + s*B*A| + b"
    merges: ClassVar[bool] = True

    rank: Size = Field(description="Rank of the update: a number, or {default: 8, last 4: 4}.")
    scale: int | float = Field(1, description="s, what the update is multiplied with.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what A reads.")
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="How A is drawn; B is zero at the start."
    )
