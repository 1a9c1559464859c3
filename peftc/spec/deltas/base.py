"""What the options of every delta declare, as data: where it may stand and how it composes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

Activation = Literal[
    "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu", "identity"
]


class Strict(BaseModel):
    """A part of a spec: frozen, typed strictly, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class DeltaOptions(Strict):
    """Options of one delta. The class's facts are what `check`, the schema and the docs read."""

    kind: ClassVar[str]
    sites: ClassVar[tuple[str, ...]]  # globs over roles; "module" for a module of the model
    composes: ClassVar[tuple[str, ...]]  # the first is the default
    form: ClassVar[str | None]  # the default form, None where form has no meaning
    formula: ClassVar[str]  # what h becomes
    merges: ClassVar[bool] = False  # whether it can be folded into a frozen weight
