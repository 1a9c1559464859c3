"""The JSON schema of a spec, for editors: every key described, expressions allowed for values.

A spec names it in its first line by a path relative to the spec, and it lies beside the spec. That
is the one form that every editor resolves, that needs no network, and that means the same on every
machine that the folder is copied to. A `file:` address has the path of one machine in it, and an
`https:` address has to be served for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftc.spec.catalogue import folder
from peftc.spec.schema import Written

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = "spec.schema.json"  # beside the shipped specs
IDENTITY = "urn:peftc:spec:1"  # names the schema wherever it lies; nothing is fetched from there
MODELINE = "# yaml-language-server: $schema="
EXPRESSION = {"type": "string", "pattern": r"\$", "description": "An expression over `vars`."}
LITERAL = ("integer", "number", "boolean")
# Where a spec has no expressions: names, and what they are named by.
PLAIN = {"peftc", "name", "about", "id", "use", "vars"}


def json_schema() -> dict[str, Any]:
    """The schema: it accepts every spec that loads, and refuses wrong keys and values.

    Duplicate keys, and what depends on a model, only the loader sees.
    """
    schema = Written.model_json_schema()
    definitions = schema["$defs"]
    for definition in [schema, *definitions.values()]:
        for properties in all_properties(definition):
            for name, value in properties.items():
                value.pop("title", None)
                if name not in PLAIN:
                    properties[name] = with_expressions(value)
    insertion = definitions["Insertion"]["properties"]
    several = insertion["at"]
    insertion["at"] = {
        "description": several.get("description", ""),
        "anyOf": [{k: v for k, v in several.items() if k != "description"}, several["items"]],
    }
    # An entry is a use of another spec or an insertion: the key `use` tells which.
    entries = schema["properties"]["insert"]
    entries["items"] = {
        "if": {"required": ["use"]},
        "then": {"$ref": "#/$defs/Use"},
        "else": {"$ref": "#/$defs/Insertion"},
    }
    named = {"$schema": DIALECT, "$id": IDENTITY}
    return {**named, **schema, "title": "peftc spec", "description": "A peftc spec."}


def all_properties(definition: dict[str, Any]) -> list[dict[str, Any]]:
    """The properties of a definition, or of the mappings it may be."""
    branches = [definition, *definition.get("anyOf", [])]
    return [b["properties"] for b in branches if "properties" in b]


def with_expressions(value: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value, or an expression in its place."""
    literal = value.get("type") in LITERAL or "enum" in value or "const" in value
    choices = value.get("anyOf", [])
    if literal:
        kept = {k: value[k] for k in ("description", "default") if k in value}
        inner = {k: v for k, v in value.items() if k not in kept}
        return {**kept, "anyOf": [inner, EXPRESSION]}
    if any(c.get("type") in LITERAL or "enum" in c for c in choices):
        return {**value, "anyOf": [*choices, EXPRESSION]}
    return value


def schema_path() -> Path:
    """The installed schema file, which `specs cp` copies beside what it writes."""
    return folder() / FILE
