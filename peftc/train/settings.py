"""The settings of a training run, as the command line gives them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from peftc.ground.diagnostics import error


@dataclass(frozen=True)
class Settings:
    """How long and how fast; `steps`, where given, stands above `epochs`."""

    steps: int | None = None
    epochs: float = 3.0
    batch: int = 16
    lr: float = 1e-3
    length: int = 128  # longest text, in tokens
    every: int | None = None  # steps between evaluations; a tenth of them where not given
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The settings as data."""
        return asdict(self)

    def total(self, rows: int) -> int:
        """Optimiser steps for that many rows."""
        return self.steps or max(1, round(self.epochs * rows / self.batch))


def settled(given: Mapping[str, Any]) -> Settings:
    """Settings from names and values, each checked against its field.

    Raises:
        PeftcError: E008 for an unknown name, a value of the wrong type, or one below its least.
    """
    known = {f.name: f for f in fields(Settings)}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise error(
                "E008",
                f"--set {name}={value}: `{name}` is no setting of training",
                help=(
                    *[f"did you mean `{n}`?" for n in near],
                    f"settings: {', '.join(known)}",
                    "a variable of the spec is set when it is applied",
                ),
            )
        whole = "int" in str(known[name].type)
        fits = isinstance(value, int) if whole else isinstance(value, int | float)
        if not fits or isinstance(value, bool):
            what = "a whole number" if whole else "a number"
            raise error("E008", f"--set {name}={value}: `{name}` is {what}")
        if value < 0 or (value == 0 and name not in ("seed", "lr")):
            raise error("E008", f"--set {name}={value}: `{name}` must be above 0")
    return replace(Settings(), **given)
