"""What every refusal of peftc is made of: a code, a place, and the next step."""

from __future__ import annotations

from dataclasses import dataclass, field

# The first digit of a code is its family, and a family has one exit code.
EXIT_CODES = {"0": 2, "1": 3, "2": 4, "3": 5, "4": 6, "5": 7}


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

    def render(self) -> str:
        """The diagnostic as text, without colour, in the manner of rustc."""
        lines = [f"{self.severity}[{self.code}]: {self.message}"]
        margin = " "
        if (s := self.span) is not None:
            number = str(s.line)
            margin = " " * len(number)
            carets = " " * (s.column - 1) + "^" * max(1, s.width)
            lines += [
                f"{margin}--> {s.file}:{s.line}:{s.column}",
                f"{margin} |",
                f"{number} | {s.text}",
                f"{margin} | {carets} {self.label}".rstrip(),
            ]
        lines += [f"{margin} = note: {text}" for text in self.notes]
        lines += [f"{margin} = help: {text}" for text in self.help]
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
