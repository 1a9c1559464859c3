"""`layers`: which blocks of a stack an insertion touches."""

from __future__ import annotations

import re
from typing import Any

FORMS = "all, odd, even, a number, 0-5, first 4, last 8, several with commas, or a list of numbers"
FORM = r"(all|odd|even|\d{1,6}|\d{1,6}-\d{1,6}|(first|last) \d{1,6})"
PATTERN = rf"{FORM}(, ?{FORM})*"


MANY = 200  # layers: beyond, whether two choices ever meet is left to the model


class ChoosesNothing(ValueError):
    """A choice that is written in order and chooses nothing of any model.

    `key` is the key that says it, where it is one of a mapping.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class Layers:
    """A choice of layers, written as text, a number or a list of numbers."""

    def __init__(self, written: Any) -> None:
        """Check the form; the numbers are checked against a model by `select`.

        Raises:
            ValueError: for anything that is not one of the forms.
            ChoosesNothing: for a range that ends before it begins, and for none from an end.
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
        for part in written.split(",") if isinstance(written, str) else ():
            first, _, last = part.strip().partition("-")
            if last and int(first) > int(last):
                raise ChoosesNothing(f"`{part.strip()}` chooses no layer: {last}-{first} does")
            if part.split()[-1].strip("0") == "" and not part.strip().isdigit():
                raise ChoosesNothing(f"`{part.strip()}` chooses no layer")

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

    def can_meet(self, *others: Layers, without: Layers | None = None) -> bool:
        """Whether some stack has a layer that this and all `others` choose, and not `without`.

        Choices with large numbers are taken to.
        """
        choices = [self, *others, *([] if without is None else [without])]
        numbers = [int(n) for c in choices for n in re.findall(r"\d+", c.text)]
        if len(numbers) > MANY or any(n > MANY for n in numbers):
            return True
        for count in range(1, 2 * max(numbers, default=0) + 5):
            try:
                chosen = set.intersection(*(set(c.select(count)) for c in (self, *others)))
                gone = set() if without is None else set(without.select(count))
            except ValueError:
                continue  # no stack of this size
            if chosen - gone:
                return True
        return False

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
