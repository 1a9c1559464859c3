"""Options of the bottleneck adapter."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftc.spec.delta import Activation, DeltaOptions
from peftc.spec.sizes import Size


class Bottleneck(DeltaOptions):
    """A bottleneck adapter: up(act(down(x)))."""

    kind: ClassVar[str] = "bottleneck"
    sites: ClassVar[tuple[str, ...]] = (
        "*.out", "*.q", "*.k", "*.v", "*.heads", "ffn.*", "module",
    )  # fmt: skip
    composes: ClassVar[tuple[str, ...]] = ("add", "gate")
    form: ClassVar[str | None] = "sequential"
    formula: ClassVar[str] = "h + up(act(down(x)))"
    by_task: ClassVar[tuple[str, ...] | None] = ("dim", "init")

    dim: Size = Field(
        description="Width of the bottleneck: a number, or {default: 64, last 4: 16}."
    )
    act: Activation = Field("relu", description="Nonlinearity between down and up.")
    init: Literal["zero_up", "houlsby", "lora"] = Field(
        "zero_up",
        description="zero_up: down ~ N(0, 1e-2) truncated, up = 0. houlsby: both ~ N(0, 1e-2) "
        "truncated, as in the paper. lora: down Kaiming-uniform, up = 0.",
    )
    bias: bool = Field(True, description="Whether down and up have biases (zero at the start).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout after the nonlinearity.")
    norm: Literal["none", "before", "after"] = Field(
        "none", description="A LayerNorm of its own before down or after up."
    )
