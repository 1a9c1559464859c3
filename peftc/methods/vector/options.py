"""Options of learned vectors."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftc.spec.delta import DeltaOptions


class Vector(DeltaOptions):
    """One trained number a feature, multiplied with h or added to it."""

    kind: ClassVar[str] = "vector"
    sites: ClassVar[tuple[str, ...]] = (
        "*.q", "*.k", "*.v", "*.heads", "*.out", "ffn.*", "module",
    )  # fmt: skip
    composes: ClassVar[tuple[str, ...]] = ("multiply", "add")
    form: ClassVar[str | None] = None
    formula: ClassVar[str] = "h * l"
    merges: ClassVar[bool] = True
    by_task: ClassVar[tuple[str, ...] | None] = ("init",)

    init: Literal["ones", "zeros"] | None = Field(
        None, description="Where it starts; ones for multiply and zeros for add if left out."
    )
