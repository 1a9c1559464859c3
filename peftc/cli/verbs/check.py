"""`peftc check`: a spec by itself, without a model."""

from __future__ import annotations

from typing import Annotated

import typer

from peftc.cli.console import complain, emit, note, say
from peftc.cli.options import Anywhere, Json, Set
from peftc.cli.spec_argument import read_spec

ORDER = 3
EXAMPLES = ("peftc check my.yaml", "peftc check my.yaml lora --set rank=16")


def check(
    specs: Annotated[
        list[str], typer.Argument(metavar="SPEC", help="Shipped names, paths, or saved plans.")
    ],
    set: Set = None,
    anywhere: Anywhere = False,
    json: Json = False,
) -> None:
    """Check specs: the language only, no model is loaded."""
    from peftc.ground.diagnostics import PeftcError, visible

    results, code = [], 0
    for name in specs:
        try:
            spec, _ = read_spec(name, set, anywhere=anywhere)
            results.append({"spec": name, "ok": True, "insertions": len(spec.insert)})
            if not json:
                say(f"ok  {name}: {visible(spec.name)}, {len(spec.insert)} insertion(s)")
        except PeftcError as refusal:
            code = code or refusal.exit_code
            found = refusal.diagnostics
            results.append({"spec": name, "ok": False, "diagnostics": [d.to_json() for d in found]})
            if not json:
                complain(found)
                note(f"{name}: {len(found)} error(s); nothing was loaded or downloaded")
    if json:
        emit({"ok": code == 0, "specs": results})
    if code:
        raise typer.Exit(code)
