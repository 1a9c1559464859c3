"""Sizes that differ by layer: `{default: 64, last 4: 16}`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from peftc.spec.layers import FORMS, PATTERN, ChoosesNothing, Layers

DEFAULT = "default"
POSITIVE = {"type": "integer", "exclusiveMinimum": 0}


class Sizes:
    """A whole number for each layer: by the forms of `layers`, and `default` for all others."""

    def __init__(self, written: dict[str, int]) -> None:
        """Check the keys; the numbers of the layers are checked against a model by `at`.

        Raises:
            ValueError: for a key that is no form of `layers`.
        """
        self.written = written
        self.parts = {k: form_of(k) for k in written if k != DEFAULT}

    def at(self, layer: int | None, count: int) -> int:
        """The size at one layer of a stack of `count`; `default` for a place outside of layers.

        Raises:
            ValueError: where two keys name the layer, or none does and there is no `default`.
        """
        parts = {} if layer is None else self.parts
        named = [k for k, part in parts.items() if layer in part.select(count)]
        if len(named) > 1:
            raise ValueError(f"layer {layer} is in `{named[0]}` and in `{named[1]}`")
        key = named[0] if named else DEFAULT
        if key not in self.written:
            where = "a place outside of layers" if layer is None else f"layer {layer}"
            raise ValueError(f"no size for {where}: add `{DEFAULT}`")
        return self.written[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sizes) and self.written == other.written

    def __hash__(self) -> int:
        return hash(str(self.written))

    def __repr__(self) -> str:
        return f"Sizes({self.written!r})"


def form_of(key: str) -> Layers:
    """A key as a choice of layers."""
    try:
        return Layers(int(key) if key.isdigit() else key)
    except ChoosesNothing as cause:
        raise ChoosesNothing(str(cause), key) from cause
    except ValueError as cause:
        raise ValueError(f"`{key}` names no layers; they are {DEFAULT}, or {FORMS}") from cause


def as_size(value: Any, info: ValidationInfo) -> int | Sizes:
    """The written form as a number, or as `Sizes`."""
    if isinstance(value, Sizes):
        return value
    numbers = list(value.values()) if isinstance(value, dict) else [value]
    if not numbers or any(type(n) is not int or n <= 0 for n in numbers):
        raise ValueError(
            f"`{info.field_name}` is a whole number above 0, or one by layers: "
            "{default: 64, last 4: 16}"
        )
    return Sizes(value) if isinstance(value, dict) else value


Size = Annotated[
    Any,
    BeforeValidator(as_size),
    PlainSerializer(lambda v: v.written if isinstance(v, Sizes) else v),
    WithJsonSchema(
        {
            "anyOf": [
                POSITIVE,
                {
                    "type": "object",
                    "propertyNames": {"pattern": rf"^({DEFAULT}|{PATTERN})$"},
                    "additionalProperties": {
                        "anyOf": [POSITIVE, {"type": "string", "pattern": r"\$"}]
                    },
                    "minProperties": 1,
                },
            ]
        }
    ),
]
