"""An exported file against its graph: every weight, and outputs over the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peftc.backends.base import Exported, backend
from peftc.backends.cases import Case, cases_for
from peftc.backends.differing import first_difference
from peftc.backends.export import read_export
from peftc.backends.noise import Together
from peftc.backends.process import run
from peftc.backends.report import Report, Row
from peftc.backends.same_graph import differing_lines
from peftc.backends.same_weights import differing_weights
from peftc.capture.program import Program
from peftc.ground.diagnostics import error
from peftc.rewrite.apply import select_task

# A file's kernels add in another order than torch's, and round their own way.
MULTIPLE = 8.0  # times what rounding does to the graph's own outputs
STEPS = 4.0  # of the dtype at the largest output, below which nothing is told apart
ASSUMED = 32.0  # such steps, where the graph cannot be run in float64


def verify(
    graph: Program,
    folder: str | Path | Exported,
    *,
    tolerance: float | None = None,
    deep: bool = False,
) -> Report:
    """Compare every weight of an exported file with `graph`, and what it gives with the graph's.

    The file runs in a process of its own, which imports the file's runtime and not peftc, on
    texts of many lengths, padded on either side, with ids from the whole vocabulary: all of them
    where that costs little, or with `deep`, which also converts the graph anew to compare its
    operations and constants with the file's: some do less than rounding. Every position is
    compared, those of padding as well, where it is on the right and the format is a whole graph.

    An output may differ by a small multiple of what rounding does to the graph's own on the same
    inputs, measured beside a run in float64; `tolerance` puts one number in the place of that.

    Raises:
        PeftcError: E303 for a damaged file, E406 where its runtime cannot run it, E415 where it
            was made of another graph.
    """
    exported = folder if isinstance(folder, Exported) else read_export(folder)
    target = backend(exported.kind)
    target.check_installed()
    if (task := exported.facts.get("task")) is not None:
        graph = select_task(graph, task)
    check_belongs(graph, exported)
    cases, ids, vocabulary = cases_for(graph, deep=deep)
    names = [o.name for o in graph.signature.outputs]
    hidden = [c.hidden(real_only=target.real_only) for c in cases]
    wanted, noises = ours(graph, cases, hidden, deep=deep)
    given = {f"{k}/{n}": v.numpy() for k, c in enumerate(cases) for n, v in c.values.items()}
    got = run(exported, given, len(cases), names, graph)
    weights, compared = differing_weights(graph, exported)  # of a file that runs
    rows = []
    for k, case in enumerate(cases):
        for j, name in enumerate(names):
            a, b = real(wanted[k][j], hidden[k]), real(got[k][j], hidden[k])
            noise, typical = noises[k][j]
            allowed = MULTIPLE * noise if tolerance is None else tolerance
            size = (case.batch, case.length, case.padded)
            difference, rms, agreement = apart(a, b)
            rows.append(Row(*size, name, difference, agreement, noise, allowed, rms, typical))
    lines = differing_lines(graph, exported) if deep else None
    report = Report(
        exported.kind, exported.file, tolerance, tuple(rows),
        weights, compared, ids, vocabulary, lines,
    )  # fmt: skip
    if not report.differing:
        return report
    bad = max(range(len(rows)), key=lambda k: (not rows[k].ok, rows[k].output in report.differing))
    k, j = divmod(bad, len(names))
    largest = max(1.0, largest_of(real(wanted[k][j], hidden[k])))
    allowed = max(rows[bad].tolerance / largest, 1e-6)
    first = first_difference(graph, exported, cases[k].values, allowed)
    return replace(report, first=first)


def check_belongs(graph: Program, exported: Exported) -> None:
    """Refuse to compare a file with a graph that is called otherwise.

    Raises:
        PeftcError: E415.
    """
    for what, own in (("inputs", graph.signature.inputs), ("outputs", graph.signature.outputs)):
        ours = [(e.name, list(e.dims)) for e in own]
        theirs = [(e["name"], e["dims"]) for e in exported.facts[what]]
        if ours != theirs:
            raise error(
                "E415",
                f"{exported.folder} was not exported from this graph",
                notes=tuple(
                    f"{what} of the {whose}: {', '.join(map(shown, ends))}"
                    for ends, whose in ((theirs, "file"), (ours, "graph"))
                ),
                help=("name the artifact that it was exported from, as it is now",),
            )


def shown(end: tuple[str, Sequence[int | str]]) -> str:
    """An input or output with its axes."""
    return f"{end[0]} [{', '.join(map(str, end[1]))}]"


def ours(
    graph: Program, cases: Sequence[Case], hidden: Sequence[Sequence[Tensor]], *, deep: bool
) -> tuple[list[list[Tensor]], list[list[tuple[float, float]]]]:
    """(the graph's outputs in every case, how far rounding moves each: at most, typically).

    The noise is measured in core cases, in all with `deep`. Elsewhere, and as the least, it is
    as large for its outputs as it is in the core cases: twice the largest, the median. The
    second number is the root mean square, NaN where it was not measured.
    """
    device = next(graph.parameters()).device
    values = [[v.to(device) for v in c.values.values()] for c in cases]
    measured = [k for k, c in enumerate(cases) if deep or c.core]
    training = graph.training
    graph.eval()
    try:
        runs = Together(graph, values, measured)
        own, wide = runs.outputs()
    finally:
        graph.train(training)
    wanted = [[t.cpu() for t in outputs] for outputs in own]
    noises: list[list[tuple[float, float]]] = [[] for _ in cases]
    for j in range(len(graph.signature.outputs)):
        real_ones = [real(outputs[j], h) for outputs, h in zip(wanted, hidden, strict=True)]
        sizes = [largest_of(t) for t in real_ones]
        step = torch.finfo(dtype).eps if (dtype := wanted[0][j].dtype).is_floating_point else 0.0
        found = {k: apart(real(w[j].cpu(), hidden[k]), real_ones[k]) for k, w in wide.items()}
        parts = [n / sizes[k] for k, (n, *_) in found.items() if sizes[k] > 0 and np.isfinite(n)]
        most = 2 * max(parts) if parts else ASSUMED * step
        least = max(float(np.median(parts)) if parts else 0.0, STEPS * step / MULTIPLE)
        for k, size in enumerate(sizes):
            noise, rms, _ = found.get(k, (most * size, float("nan"), 0.0))
            noise = max(noise if np.isfinite(noise) else most * size, least * size)
            noises[k].append((noise, max(rms, step * size / 16)))
    return wanted, noises


def real(output: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """An output with zeros at the positions that a mask of it hides."""
    for mask in masks:
        if output.dim() > 1 and output.shape[:2] == mask.shape:
            keep = mask.bool().reshape(*mask.shape, *[1] * (output.dim() - 2))
            return output.where(keep, 0)
    return output


def largest_of(output: Tensor) -> float:
    """The largest finite number of an output, without its sign."""
    value = output.double().abs()
    return value.where(value.isfinite(), 0.0).max().item() if value.numel() else 0.0


def apart(ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """(the largest difference, its root mean square, how often the argmax is the same).

    NaN where the shapes differ.
    """
    if ours.shape != theirs.shape:
        return float("nan"), float("nan"), 0.0
    a, b = ours.double(), theirs.double()
    difference = torch.where(a == b, 0.0, (a - b).abs())
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    return difference.max().item(), difference.square().mean().sqrt().item(), same
