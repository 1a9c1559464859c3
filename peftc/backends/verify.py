"""An exported file against its graph: other sizes, padded rows, the file's own runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftc.api import select_task
from peftc.backends.base import Exported, backend
from peftc.backends.differing import first_difference
from peftc.backends.export import read_export
from peftc.backends.process import run
from peftc.capture.inputs import example_value, sound_sizes, vocabulary_of
from peftc.capture.program import Program
from peftc.capture.streaming import run_flat

TOLERANCE = 1e-4
# (batch, length): none is the size that graphs are traced with.
SHAPES = ((1, 2), (1, 7), (4, 12), (2, 33), (3, 128))


@dataclass(frozen=True)
class Row:
    """One output at one size: the largest difference, and how often the argmax agrees."""

    batch: int
    length: int
    padded: bool
    output: str
    difference: float
    agreement: float


@dataclass(frozen=True)
class Report:
    """The comparison of an exported file with its graph.

    `first` names the first node at which they differ, where one can be told.
    """

    kind: str
    file: str
    tolerance: float
    rows: tuple[Row, ...]
    first: str = ""

    @property
    def ok(self) -> bool:
        """Whether every output at every size is within the tolerance; NaN is not."""
        return all(r.difference <= self.tolerance for r in self.rows)

    @property
    def difference(self) -> float:
        """The largest difference; NaN where any is."""
        return float(np.max([r.difference for r in self.rows]))

    def to_json(self) -> dict[str, Any]:
        """The report as data."""
        return {
            "kind": self.kind,
            "file": self.file,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "first": self.first,
            "rows": [asdict(r) for r in self.rows],
        }


def verify(
    graph: Program, folder: str | Path | Exported, *, tolerance: float = TOLERANCE
) -> Report:
    """Run the exported file in a process of its own and compare it with `graph`.

    That process imports the file's runtime and not peftc. Every position is compared, those of
    padding as well, where the format is a whole graph.

    Raises:
        PeftcError: E303 for a damaged file, E406 where its runtime cannot run it.
    """
    exported = folder if isinstance(folder, Exported) else read_export(folder)
    backend(exported.kind).check_installed()
    if (task := exported.facts.get("task")) is not None:
        graph = select_task(graph, task)
    sizes = [
        sound_sizes(
            {"batch": b, "sequence": s, "decoder_sequence": max(1, s - 1)}, graph.signature.config
        )
        for b, s in shapes_for(graph)
    ]
    vocabulary = vocabulary_of(graph.signature.config)
    device = next(graph.parameters()).device
    cases, given, wanted, masks = {}, [], [], []
    training = graph.training
    graph.eval()
    for k, size in enumerate(sizes):
        values = {i.name: example_value(i, size, vocabulary) for i in graph.signature.inputs}
        given.append(values)
        cases |= {f"{k}/{n}": v.numpy() for n, v in values.items()}
        real = backend(exported.kind).real_only
        masks.append([v for n, v in values.items() if real and n.endswith("attention_mask")])
        with torch.no_grad():
            found = run_flat(graph, [v.to(device) for v in values.values()])
            wanted.append([t.cpu() for t in found])
    graph.train(training)
    names = [o.name for o in graph.signature.outputs]
    got = run(exported, cases, len(sizes), names, graph)
    rows = tuple(
        compared(size, name, a, b, mask)
        for size, ours, theirs, mask in zip(sizes, wanted, got, masks, strict=True)
        for name, a, b in zip(names, ours, theirs, strict=True)
    )
    report = Report(exported.kind, exported.file, tolerance, rows)
    if report.ok:
        return report
    bad = next(r for r in rows if not r.difference <= tolerance)
    values = given[rows.index(bad) // len(names)]
    return replace(report, first=first_difference(graph, exported, values, tolerance))


def shapes_for(graph: Program) -> list[tuple[int, int]]:
    """The sizes to compare at, the longest within what the model's positions allow."""
    signature = graph.signature
    own = getattr(signature.config.get_text_config(), "max_position_embeddings", None) or 512
    # Of a graph that is not applied: two rows, since some models count from the padding id on.
    limit = min(signature.longest.values(), default=own - 2)
    tasks = [(i.below, 9) for i in signature.inputs if i.below is not None]
    return list(dict.fromkeys((b, min(s, limit)) for b, s in (*SHAPES, *tasks)))


def compared(
    size: dict[str, int], name: str, ours: Tensor, theirs: Tensor, masks: Sequence[Tensor] = ()
) -> Row:
    """One output of the graph and of the file, without the positions that a mask of it hides."""
    for mask in masks:
        if ours.dim() > 1 and ours.shape == theirs.shape and ours.shape[:2] == mask.shape:
            keep = mask.bool().reshape(*mask.shape, *[1] * (ours.dim() - 2))
            ours, theirs = ours.where(keep, 0), theirs.where(keep, 0)
            break
    if ours.shape != theirs.shape:
        difference, agreement = float("nan"), 0.0
    else:
        difference = (ours.double() - theirs.double()).abs().max().item()
        agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    padded = size["batch"] > 1 and size["sequence"] > 3
    return Row(size["batch"], size["sequence"], padded, name, difference, agreement)
