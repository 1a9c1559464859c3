"""`peftc explain`: the long version of an error."""

from __future__ import annotations

import difflib
import sys
from importlib.resources import files
from typing import Annotated

import typer

from peftc.cli.console import emit
from peftc.cli.options import Json
from peftc.ground.diagnostics import error

ORDER = 12
EXAMPLES = ("peftc explain E101",)


def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A code, as E101.")],
    json: Json = False,
) -> None:
    """Explain an error or a warning at length, with what to write instead."""
    folder = files("peftc") / "explanations"
    known = sorted(p.name.removesuffix(".md") for p in folder.iterdir())
    wanted = code.upper()
    if wanted not in known:
        read = wanted.translate(str.maketrans("OIL", "011"))
        meant = [read] if read in known else difflib.get_close_matches(wanted, known, 1)
        near = [f"did you mean {n}?" for n in meant]
        codes = f"codes: {', '.join(known)}"
        raise error("E008", f"there is no error {code}", help=(*near, codes))
    text = (folder / f"{wanted}.md").read_text(encoding="utf-8")
    if json:
        emit({"code": wanted, "explanation": text})
    else:
        sys.stdout.write(text)
