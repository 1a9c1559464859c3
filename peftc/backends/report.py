"""What the comparison of an exported file with its graph has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from peftc.backends.same_weights import Differing

TYPICAL = 4.0  # times the noise's root mean square over all cases, which hardly varies


@dataclass(frozen=True)
class Row:
    """One output in one case: the largest difference, and how often the argmax agrees.

    `noise` is how far rounding moves the graph's own output there: the largest difference from
    its float64 run, or an estimate from other cases. `tolerance` is what is allowed. `rms` and
    `rms_noise` are the root mean squares of the same two; NaN where nothing was measured.
    """

    batch: int
    length: int
    padded: str
    output: str
    difference: float
    agreement: float
    noise: float
    tolerance: float
    rms: float = 0.0
    rms_noise: float = float("nan")

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Report:
    """The comparison of an exported file with its graph.

    `tolerance` is the one that was asked for; None where each row has its own, from `noise`.
    `weights` are those that the file has otherwise, of `compared`; `ids` were run, of
    `vocabulary`. `lines` are those in which a thorough comparison found the file's operations and
    constants to be others, None where there was none. `first` names the first node at which they
    differ, where one can be told.
    """

    kind: str
    file: str
    tolerance: float | None
    rows: tuple[Row, ...]
    weights: tuple[Differing, ...] = ()
    compared: int = 0
    ids: int = 0
    vocabulary: int = 0
    lines: tuple[str, ...] | None = None
    first: str = ""

    @property
    def ok(self) -> bool:
        """Whether every output is within what is allowed, and all that was compared the same."""
        return not self.differing and not self.weights and not self.lines

    @property
    def difference(self) -> float:
        """The largest difference; NaN where any is."""
        return float(np.max([r.difference for r in self.rows]))

    @property
    def differing(self) -> tuple[str, ...]:
        """The outputs that are not within their tolerance, or differ typically by too much."""
        return tuple(dict.fromkeys([*(r.output for r in self.rows if not r.ok), *self.far]))

    @property
    def far(self) -> dict[str, float]:
        """Of `typical` what is more than is allowed."""
        if self.tolerance is not None:
            return {}
        return {n: r for n, r in self.typical.items() if not r <= TYPICAL}

    @property
    def typical(self) -> dict[str, float]:
        """By output the root mean square of the difference over that of the noise.

        Over all cases in which the noise was measured. What is off everywhere by less than the
        largest noise is seen here.
        """
        found = {}
        for name in dict.fromkeys(r.output for r in self.rows):
            rows = [r for r in self.rows if r.output == name and not np.isnan(r.rms_noise)]
            noise = sum(r.rms_noise**2 for r in rows)
            if noise:
                found[name] = float(np.sqrt(sum(r.rms**2 for r in rows) / noise))
        return found

    def to_json(self) -> dict[str, Any]:
        """The report as data."""
        return {
            "kind": self.kind,
            "file": self.file,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "first": self.first,
            "outputs": list(self.differing),
            "weights": {
                "compared": self.compared,
                "differing": [plain(w) for w in self.weights],
            },
            "lines": None if self.lines is None else list(self.lines),
            "ids": {"run": self.ids, "vocabulary": self.vocabulary},
            "typical": self.typical,
            "rows": [plain(r) for r in self.rows],
        }


def plain(one: Row | Differing) -> dict[str, Any]:
    """A row as JSON has it, which knows no NaN."""
    return {k: None if v != v else v for k, v in asdict(one).items()}
