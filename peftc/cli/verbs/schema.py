"""`peftc schema`: the JSON schema of specs, for editors."""

from __future__ import annotations

import difflib
import json as data
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, say
from peftc.cli.options import Force, Json
from peftc.ground.diagnostics import error

ORDER = 11
EXAMPLES = ("peftc schema --out spec.schema.json", "peftc schema --field insert.delta.bottleneck")


def schema(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write it to a file.")
    ] = None,
    field: Annotated[
        str | None, typer.Option(metavar="KEYS", help="Only this key, as insert.delta.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Print the JSON schema of specs: every key, described.

    Editors complete and underline from it: `peftc specs cp` puts it beside the copy, and names it
    in the first line.
    """
    from peftc.spec.json_schema import json_schema

    found = json_schema()
    if field is not None:
        found = part(found, field)
    text = data.dumps(found, indent=1) + "\n"
    if out is not None:
        from peftc.ground.output.text import write_text

        write_text(out, text, force=force)
    if json:
        emit({"schema": found, "out": str(out) if out else None})
    elif out is not None:
        say(f"wrote {out}")
    else:
        sys.stdout.write(text)


def part(whole: dict[str, Any], field: str) -> dict[str, Any]:
    """The schema of one key, named by the keys that lead to it.

    Raises:
        PeftcError: E008 for a key that is not there.
    """
    here: dict[str, Any] = whole
    for key in field.split("."):
        known = properties(here, whole)
        if key not in known:
            near = [f"did you mean `{n}`?" for n in difflib.get_close_matches(key, known, 1)]
            raise error(
                "E008",
                f"--field {field}: there is no key `{key}`",
                help=(*near, f"keys there: {', '.join(known) or 'none'}"),
            )
        here = known[key]
    return {**followed(here, whole), **definitions(followed(here, whole), whole)}


def definitions(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """The "$defs" that a part refers to, and those that they refer to."""
    known = whole.get("$defs", {})
    used: dict[str, Any] = {}
    pending = [schema]
    while pending:
        text = data.dumps(pending.pop())
        for name in known:
            if name not in used and f'"#/$defs/{name}"' in text:
                used[name] = known[name]
                pending.append(known[name])
    return {"$defs": used} if used else {}


def followed(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """A schema with a reference at its top replaced by what it names."""
    if "$ref" not in schema:
        return schema
    target = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**target, **{k: v for k, v in schema.items() if k != "$ref"}}


def properties(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """The keys that a schema's mapping may have, whichever of its forms says them."""
    schema = followed(schema, whole)
    found = dict(schema.get("properties", {}))
    forms = [f for name in ("anyOf", "oneOf", "allOf") for f in schema.get(name, ())]
    forms += [schema[name] for name in ("then", "else", "items") if name in schema]
    for form in forms:
        found |= properties(form, whole)
    return found
