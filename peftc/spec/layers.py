"""`layers`: which blocks of a stack an insertion touches."""

from __future__ import annotations

import re
from typing import Any

FORMS = "all, odd, even, a number, 0-5, first 4, last 8, several with commas, or a list of numbers"
FORM = r"(all|odd|even|\d{1,6}|\d{1,6}-\d{1,6}|(first|last) \d{1,6})"
PATTERN = rf"{FORM}(, ?{FORM})*"


class Layers:
    """A choice of layers, written as text, a number or a list of numbers."""

    def __init__(self, written: Any) -> None:
        """Check the form; the numbers are checked against a model by `select`.

        Raises:
            ValueError: for anything that is not one of the forms.
        """
        self.written = written
        if isinstance(written, list):
            if not written or any(type(k) is not int or k < 0 for k in written):
                raise ValueError(f"layers are {FORMS}")
        elif type(written) is int:
            if written < 0:
                raise ValueError(f"layers are {FORMS}")
        elif not isinstance(written, str) or not re.fullmatch(PATTERN, written):
            raise ValueError(f"layers are {FORMS}")

    def select(self, count: int) -> tuple[int, ...]:
        """The chosen layers of a stack of `count`.

        Raises:
            ValueError: where a layer is named that the stack does not have.
        """
        w = self.written
        if isinstance(w, str) and "," in w:
            parts = [Layers(part.strip()).select(count) for part in w.split(",")]
            return tuple(sorted({k for part in parts for k in part}))
        if w in ("all", "odd", "even"):
            start, step = {"all": (0, 1), "odd": (1, 2), "even": (0, 2)}[w]
            return tuple(range(start, count, step))
        if isinstance(w, int):
            chosen = [w]
        elif isinstance(w, list):
            chosen = w
        elif w.isdigit():
            chosen = [int(w)]
        elif w.startswith(("first", "last")):
            number = int(w.split()[1])
            if number > count:
                raise ValueError(f"`layers: {w}` of a stack of {count} layers")
            chosen = range(number) if w.startswith("first") else range(count - number, count)
        else:
            first, last = map(int, w.split("-"))
            chosen = range(first, last + 1)
        if not chosen or max(chosen) >= count:
            raise ValueError(f"`layers: {w}` of a stack of {count} layers, 0 to {count - 1}")
        return tuple(chosen)

    def __or__(self, other: Layers) -> Layers:
        """The layers of either."""
        return Layers(f"{self.text}, {other.text}")

    @property
    def text(self) -> str:
        """The choice as text."""
        return (
            ", ".join(map(str, self.written))
            if isinstance(self.written, list)
            else str(self.written)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layers) and self.written == other.written

    def __hash__(self) -> int:
        return hash(str(self.written))

    def __repr__(self) -> str:
        return f"Layers({self.written!r})"
