"""The options that every verb has: how to speak, and whether to ask the hub."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from peftc.cli.claim import COMMAND
from peftc.cli.console import MANNER
from peftc.ground.diagnostics import error

PANEL = "Common options"
COLORS = ("auto", "never", "always")
OPTIONS: dict[str, tuple[Any, Any]] = {
    "quiet": (
        Annotated[
            bool,
            typer.Option("-q", "--quiet", help="The result alone.", rich_help_panel=PANEL),
        ],
        False,
    ),
    "verbose": (
        Annotated[
            bool,
            typer.Option("-v", "--verbose", help="Say what is done.", rich_help_panel=PANEL),
        ],
        False,
    ),
    "debug": (
        Annotated[
            bool,
            typer.Option("--debug", help="The traceback of a failure.", rich_help_panel=PANEL),
        ],
        False,
    ),
    "color": (
        Annotated[
            str,
            typer.Option(help="auto, never or always.", metavar="WHEN", rich_help_panel=PANEL),
        ],
        "auto",
    ),
    "offline": (
        Annotated[
            bool, typer.Option("--offline", help="Never ask the hub.", rich_help_panel=PANEL)
        ],
        False,
    ),
}


def with_common(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that takes the common options as well, and obeys them before it begins."""

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        obey(**{n: given.pop(n) for n in OPTIONS})
        with COMMAND:
            verb(**given)

    signature = inspect.signature(verb, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [
        inspect.Parameter(n, kind, default=default, annotation=annotation)
        for n, (annotation, default) in OPTIONS.items()
    ]
    parameters = [p.replace(kind=kind) for p in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*parameters, *extra])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*parameters, *extra]}
    return run


def obey(*, quiet: bool, verbose: bool, debug: bool, color: str, offline: bool) -> None:
    """Set how the program speaks; `debug` is seen to where errors are reported.

    Raises:
        PeftcError: E008 for an unknown colour.
    """
    if color not in COLORS:
        raise error(
            "E008", f"--color {color}: no such choice", help=(f"one of: {', '.join(COLORS)}",)
        )
    MANNER.quiet, MANNER.verbose, MANNER.color = quiet, verbose, color
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def examples(lines: Sequence[str]) -> str | None:
    """Command lines as the end of a help text; an empty line keeps them apart."""
    return "\n\n".join(["Examples:", *lines]) if lines else None
