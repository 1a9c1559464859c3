"""What the verbs print with: results on stdout, progress on stderr, JSON on demand."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from peftc.ground.diagnostics import Diagnostic, visible

FORMAT = "1.0"
WIDE = 400  # columns where nobody looks: piped output is never wrapped or cut


@dataclass
class Manner:
    """How the program speaks, as its common options say."""

    quiet: bool = False
    verbose: bool = False
    color: str = "auto"


MANNER = Manner()  # set once a command line, before its verb runs


def console(*, stderr: bool = False) -> Console:
    """A console of the terminal's width; wide and without colour where it is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    colour = {"always": True, "never": False}.get(MANNER.color)
    if colour is None:
        colour = stream.isatty() and not os.environ.get("NO_COLOR")
    return Console(
        file=stream,
        highlight=False,
        width=None if stream.isatty() else WIDE,
        soft_wrap=not stream.isatty(),
        force_terminal=True if colour else None,
        color_system="auto" if stream.isatty() or not colour else "standard",
        no_color=not colour,
    )


def say(text: str = "", style: str = "") -> None:
    """A line of the result, or several; nothing in it moves a terminal's cursor."""
    shown = "\n".join(visible(line) for line in text.split("\n"))
    console().print(Text(shown, style=style))


def hint(text: str) -> None:
    """What to type next, after the result; left out by --quiet."""
    if not MANNER.quiet:
        say(text)


def note(text: str) -> None:
    """A line beside the result, on stderr; left out by --quiet."""
    if not MANNER.quiet:
        console(stderr=True).print(Text(visible(text), style="dim"))


def detail(text: str) -> None:
    """A line on stderr that only --verbose shows."""
    if MANNER.verbose:
        note(text)


def emit(data: dict[str, Any]) -> None:
    """The result as one JSON object."""
    sys.stdout.write(json.dumps({"format_version": FORMAT, **data}, indent=1) + "\n")


def table(title: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]) -> None:
    """A table: columns are (heading, "left" or "right"); an empty title is none."""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=Text(visible(title)) if title else None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        show_edge=False,
    )
    for heading, side in columns:
        made.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("\n".join(map(visible, str(c).split("\n")))) for c in row))
    console().print(made)


def several(parts: Iterable[str], between: str = ", ") -> str:
    """The parts of a cell: one a line on a terminal, all in one line where it is none."""
    lines = [visible(p) for p in parts]
    return between.join(lines) if not console().is_terminal else f"{between.rstrip()}\n".join(lines)


def complain(diagnostics: Sequence[Diagnostic]) -> None:
    """Diagnostics on stderr, coloured and wrapped on a terminal."""
    out = console(stderr=True)
    for k, d in enumerate(diagnostics):
        if k:
            out.print()
        out.print(coloured(d, out.width if out.is_terminal else None), soft_wrap=True)


def coloured(d: Diagnostic, width: int | None = None) -> Text:
    """A diagnostic as rich text: the words as `render` gives them."""
    text = Text(d.render(width))
    red = "bold red" if d.severity == "error" else "bold yellow"
    text.highlight_regex(r"\A(error|warning)\[\w+\]", red)
    text.highlight_regex(r"(?m)^\s*\d* ?(-->|\||=)", "blue")
    text.highlight_regex(r"(?m)\^+.*$", red)
    text.highlight_regex(r"(?m)(?<== )(help|note):", "cyan")
    return text


def progress(text: str) -> AbstractContextManager[Any]:
    """A spinner on stderr while something takes its time; with --verbose a line that stays."""
    detail(text)
    if MANNER.quiet or not sys.stderr.isatty():
        return nullcontext()
    return console(stderr=True).status(escape(visible(text)))


class Steps:
    """What was done, and in how many seconds: said as it goes, or for --json kept."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.done: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a step; within, put what it did under "what"."""
        facts: dict[str, Any] = {"step": name}
        start = time.perf_counter()
        with progress(name):
            yield facts
        facts["seconds"] = round(time.perf_counter() - start, 2)
        self.done.append(facts)
        if not self.silent:
            say(f" {name:<9} {facts['what']:<60} {facts['seconds']:6.1f} s")
