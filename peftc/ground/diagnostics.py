"""What every refusal of peftc is made of: a code, a place, and the next step."""

from __future__ import annotations

import textwrap
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

# The first digit of a code is its family, and a family has one exit code.
EXIT_CODES = {"0": 2, "1": 3, "2": 4, "3": 5, "4": 6, "5": 7}
LONGEST = 200  # characters of a source line that are shown where nothing wraps
MOST = 100  # mistakes of one file that are said


@dataclass(frozen=True)
class Span:
    """A stretch of one line of a text file. Line and column count from 1."""

    file: str
    line: int
    column: int
    width: int
    text: str  # the whole source line, without its end-of-line


@dataclass(frozen=True)
class Diagnostic:
    """One thing that is wrong (``E...``) or worth knowing (``W...``)."""

    code: str
    message: str
    span: Span | None = None
    label: str = ""  # said beside the carets
    notes: tuple[str, ...] = ()
    help: tuple[str, ...] = ()  # the next steps

    @property
    def severity(self) -> str:
        """``error`` or ``warning``, from the code's letter."""
        return "warning" if self.code.startswith("W") else "error"

    def render(self, width: int | None = None) -> str:
        """The diagnostic as text, without colour, in the manner of rustc.

        With `width`, sentences are wrapped and a long source line is cut around its carets;
        without, every sentence is one line.
        """
        head = f"{self.severity}[{self.code}]: "
        lines = wrapped(head, self.message, width)
        margin = " "
        if (s := self.span) is not None:
            number = str(s.line)
            margin = " " * len(number)
            room = LONGEST if width is None else max(20, width - len(number) - 3)
            text, carets = excerpt(s, room)
            lines += [f"{margin}--> {visible(s.file)}:{s.line}:{s.column}", f"{margin} |"]
            lines.append(f"{number} | {text}".rstrip())
            lines += wrapped(f"{margin} | {carets} ", self.label, width, f"{margin} |")
        for kind, texts in (("note", self.notes), ("help", self.help)):
            for text in texts:
                lines += wrapped(f"{margin} = {kind}: ", text, width)
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """The same facts for ``--json``."""
        place = None
        if (s := self.span) is not None:
            place = {"file": s.file, "line": s.line, "column": s.column, "width": s.width}
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "at": place,
            "label": self.label,
            "notes": list(self.notes),
            "help": list(self.help),
        }


def wrapped(head: str, text: str, width: int | None, margin: str = "") -> list[str]:
    """`head` and `text` on one line, or on several that hang under the text's beginning."""
    text = visible(text)
    if width is None or len(head) + len(text) <= width or len(head) > width - 20:
        return [f"{head}{text}".rstrip()]
    lines = textwrap.wrap(
        text, width - len(head), break_long_words=False, break_on_hyphens=False
    ) or [""]
    hang = margin.ljust(len(head))
    return [f"{head}{lines[0]}".rstrip(), *(hang + line for line in lines[1:])]


def excerpt(span: Span, room: int) -> tuple[str, str]:
    """The source line, cut to `room` characters around the span, and the carets below it."""
    start, width = span.column - 1, max(1, span.width)
    left = max(0, start + min(width, room // 2) - room + 4) if start + width > room else 0
    text = span.text[left : left + room]
    start = start - left
    width = max(1, min(width, room - start))
    if left:
        text = "..." + text[3:]
    if left + room < len(span.text):
        text = text[: room - 3] + "..."
    return visible(text), " " * cells(text[:start]) + "^" * max(1, cells(text[start:][:width]))


def cells(text: str) -> int:
    """The columns that a text takes on a terminal: wide characters take two."""
    wide = (1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
    return sum(w for w, c in zip(wide, text, strict=True) if not unicodedata.combining(c))


def visible(text: str) -> str:
    """A text whose control characters, which could move a terminal's cursor, are blanks."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf") else c for c in text)


@dataclass
class PeftcError(Exception):
    """A refusal: one diagnostic or several, all of the same stage."""

    diagnostics: list[Diagnostic] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(str(self))

    @property
    def exit_code(self) -> int:
        """The process's exit code: that of the first diagnostic's family."""
        return EXIT_CODES[self.diagnostics[0].code[1]]

    def __str__(self) -> str:
        return "\n\n".join(d.render() for d in self.diagnostics)


def error(
    code: str,
    message: str,
    *,
    span: Span | None = None,
    label: str = "",
    notes: tuple[str, ...] = (),
    help: tuple[str, ...] = (),
) -> PeftcError:
    """A `PeftcError` of one diagnostic, to be raised by the caller."""
    return PeftcError([Diagnostic(code, message, span, label, notes, help)])


class PeftcWarning(UserWarning):
    """A diagnostic worth knowing that stops nothing."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.render())
        self.diagnostic = diagnostic


def warn(diagnostic: Diagnostic) -> None:
    """Tell a diagnostic as a Python warning; the command line prints it like an error."""
    warnings.warn(PeftcWarning(diagnostic), stacklevel=3)


class Mistakes(list[Diagnostic]):
    """What is wrong with a file, found one after the other; so many end the reading of it.

    Raises:
        PeftcError: with all of them, by whatever is added when there are `MOST`.
    """

    def append(self, mistake: Diagnostic) -> None:
        """Add one."""
        self.extend([mistake])

    def extend(self, mistakes: Iterable[Diagnostic]) -> None:
        """Add several."""
        super().extend(mistakes)
        if len(self) > MOST:
            last = self[MOST - 1]
            notes = (*last.notes, f"there is more: after {MOST} mistakes reading stops")
            raise PeftcError([*self[: MOST - 1], replace(last, notes=notes)])

    def __iadd__(self, mistakes: Iterable[Diagnostic]) -> Self:  # type: ignore[override]
        self.extend(mistakes)
        return self
