"""A mapping of exactly one key, which says the kind of what stands under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, GetJsonSchemaHandler, create_model, model_validator
from pydantic_core import CoreSchema

from peftc.spec.delta import Strict


class Bare(Strict):
    """A kind without options."""


class OneOf(Strict):
    """A mapping of exactly one key, which says the kind; its bare name means no options."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: {}}
        if isinstance(value, dict):
            value = {k: {} if v is None else v for k, v in value.items()}
            known = [k for k in value if k in cls.model_fields]
            if len(known) == len(value) and len(value) != 1:
                given = f"here are {' and '.join(known)}" if known else "here is none"
                raise ValueError(f"exactly one of: {', '.join(cls.model_fields)}; {given}")
        return value

    @property
    def kind(self) -> str:
        """The one key."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> Any:
        """What stands under the key."""
        return getattr(self, self.kind)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema.update(minProperties=1, maxProperties=1)
        mapping = dict(schema)
        schema.clear()
        schema.update(anyOf=[{"enum": list(cls.model_fields)}, mapping])
        return schema


def one_of(name: str, doc: str, options: Mapping[str, type[Strict]]) -> type[OneOf]:
    """A `OneOf` with a key for each kind of options."""
    fields: dict[str, Any] = {
        kind: (o | None, Field(None, description=(o.__doc__ or "").strip()))
        for kind, o in options.items()
    }
    return create_model(name, __base__=OneOf, __doc__=doc, **fields)
