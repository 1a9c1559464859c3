"""The source of a spec: its data, and the place in the text of every key and value."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from peftc.ground.diagnostics import Span

Where = tuple[str | int, ...]


@dataclass
class Source:
    """A parsed file: its data, and where every key and value stands."""

    file: str
    lines: list[str]
    data: Any = None
    keys: dict[Where, Span] = field(default_factory=dict)
    values: dict[Where, Span] = field(default_factory=dict)

    def span(self, *where: str | int) -> Span | None:
        """The place of a value, or of the nearest thing around it that has one."""
        while where:
            if where in self.values:
                return self.values[where]
            where = where[:-1]
        return self.values.get(())

    def key(self, *where: str | int) -> Span | None:
        """The place of a key, or of the value where it is a list's item."""
        return self.keys.get(where) or self.span(*where)

    def at(self, mark: Any, width: int) -> Span:
        """A span from a parser's mark; width 0 means to the end of the line."""
        line = min(mark.line, len(self.lines) - 1)
        text, column = self.lines[line], mark.column
        if line and not text and mark.line >= line:  # the end of the file: behind its last line
            line -= 1
            text = self.lines[line]
            column = len(text)
        column = min(column, len(text))
        return Span(self.file, line + 1, column + 1, width or max(1, len(text) - column), text)


def lines_of(text: str) -> list[str]:
    """The lines of a text, as YAML breaks them."""
    return re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
