"""An exported file against its graph: other sizes, padded rows, the file's own runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftc.backends.base import backend
from peftc.backends.differing import first_difference
from peftc.backends.export import read_export
from peftc.backends.process import run
from peftc.capture.inputs import example_value, sound_sizes
from peftc.capture.program import Program
from peftc.capture.streaming import run_flat
from peftc.pieces.prefix import Prefix
from peftc.pieces.prompt import Prompt

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
    """The comparison of an exported file with its graph."""

    kind: str
    file: str
    tolerance: float
    rows: tuple[Row, ...]
    first: str = ""  # the first node that differs, where one was found

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
            "first_differing_node": self.first or None,
            "rows": [asdict(r) for r in self.rows],
        }


def verify(graph: Program, folder: str | Path, *, tolerance: float = TOLERANCE) -> Report:
    """Run the exported file in a process of its own and compare it with `graph`.

    That process imports the file's runtime, and neither peftc nor transformers. Every position
    is compared, those of padding as well. Where an output differs, the report names the first
    node that does.

    Raises:
        PeftcError: E303 for a damaged file, E406 where its runtime cannot run it.
    """
    exported = read_export(folder)
    backend(exported.kind).check_installed()
    sizes = [
        sound_sizes(
            {"batch": b, "sequence": s, "decoder_sequence": max(1, s - 1)}, graph.signature.config
        )
        for b, s in shapes_for(graph)
    ]
    vocabulary = getattr(graph.signature.config.get_text_config(), "vocab_size", 2) or 2
    device = next(graph.parameters()).device
    cases, wanted = {}, []
    training = graph.training
    graph.eval()
    for k, size in enumerate(sizes):
        values = {i.name: example_value(i, size, vocabulary) for i in graph.signature.inputs}
        cases |= {f"{k}/{n}": v.numpy() for n, v in values.items()}
        with torch.no_grad():
            found = run_flat(graph, [v.to(device) for v in values.values()])
            wanted.append([t.cpu() for t in found])
    graph.train(training)
    names = [o.name for o in graph.signature.outputs]
    got = run(exported, cases, len(sizes), names)
    rows = tuple(
        compared(size, name, a, b)
        for size, ours, theirs in zip(sizes, wanted, got, strict=True)
        for name, a, b in zip(names, ours, theirs, strict=True)
    )
    report = Report(exported.kind, exported.file, tolerance, rows)
    if report.ok:
        return report
    k = next(k for k, r in enumerate(rows) if not r.difference <= tolerance) // len(names)
    values = {i.name: torch.from_numpy(cases[f"{k}/{i.name}"]) for i in graph.signature.inputs}
    return replace(report, first=first_difference(graph, exported, values, tolerance))


def shapes_for(graph: Program) -> list[tuple[int, int]]:
    """The sizes to compare at, the longest within what the model's positions allow."""
    config = graph.signature.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or 512
    for module in graph.modules():
        if isinstance(module, Prompt):
            limit -= module.tokens
    prefixes = [m.shapes[0][1] for m in graph.modules() if isinstance(m, Prefix)]
    # Two rows: some models count positions from the padding id on.
    limit -= max(prefixes, default=0) + 2
    return list(dict.fromkeys((b, min(s, limit)) for b, s in SHAPES))


def compared(size: dict[str, int], name: str, ours: Tensor, theirs: Tensor) -> Row:
    """One output of the graph and of the file."""
    if ours.shape != theirs.shape:
        difference, agreement = float("nan"), 0.0
    else:
        difference = (ours.double() - theirs.double()).abs().max().item()
        agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    padded = size["batch"] > 1 and size["sequence"] > 3
    return Row(size["batch"], size["sequence"], padded, name, difference, agreement)
