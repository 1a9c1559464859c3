"""The ways in which a delta can meet what is there: add, gate, multiply, attend, prepend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from peftc.spec.delta import Strict
from peftc.spec.one_of import OneOf, one_of

Number = int | float


class Gate(Strict):
    """(1 - g) h + g delta, with a trained g; under `add`, h + g * scale * delta."""

    init: Number = Field(0.5, description="Where g starts.")
    per: Literal["scalar", "channel"] = Field("scalar", description="One g, or one a feature.")
    reads: Literal["none", "h", "x", "stream"] = Field(
        "none",
        description="none: g is a number. h, x, stream, as an insertion reads: each token has its "
        "own g = sigmoid(w . x + b).",
    )


class PrefixGate(Strict):
    """Each query sees g P_k and g P_v, g = sigmoid(w . x + b) of the input of its projection."""

    init: float = Field(0.5, gt=0, lt=1, description="Where g starts.")
    reads: Literal["x"] = Field("x", description="x: what the projection of the queries reads.")


class Add(Strict):
    """h + scale * delta, or h + g * scale * delta."""

    scale: Number = Field(1, description="What the delta is multiplied with.")
    gate: Gate | None = Field(None, description="A trained g.")


class Multiply(Strict):
    """h * delta."""


class Attend(Strict):
    """Keys and values that the softmax sees beside the model's own."""

    gate: PrefixGate | None = Field(None, description="How much of them each query sees.")


class Prepend(Strict):
    """Rows in front of the sequence."""

    trim: bool = Field(True, description="Cut these rows from the outputs again.")
    padding: Literal["ids", "none"] = Field(
        "ids",
        description="What the model finds in the ids besides embeddings, such as the last token "
        "that is no padding: in the real ids; or none of them is padding, as with inputs_embeds.",
    )


COMPOSES: dict[str, type[Strict]] = {
    "add": Add,
    "gate": Gate,
    "multiply": Multiply,
    "attend": Attend,
    "prepend": Prepend,
}
if TYPE_CHECKING:
    Compose = OneOf
else:
    Compose = one_of("Compose", "How the delta meets h.", COMPOSES)
