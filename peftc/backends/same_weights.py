"""Every weight of an exported file against the graph's, one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peftc.backends.base import Exported, backend
from peftc.backends.export import refolded
from peftc.capture.program import Program
from peftc.capture.stored import Stored

PART = 1 << 22  # numbers that are compared at a time
ABSENT = "not in the file"


@dataclass(frozen=True)
class Differing:
    """A weight that the file has otherwise: how, and by how much at most."""

    name: str
    how: str
    difference: float = float("nan")


def differing_weights(graph: Program, exported: Exported) -> tuple[tuple[Differing, ...], int]:
    """(the weights that the file lacks or has otherwise, how many were compared).

    What the graph's own fold makes of the weights is made anew, one weight in memory at a time.
    Bytes that the file shares with the base's own are not read.
    """
    target = backend(exported.kind)
    program = refolded(graph, exported, deferred=True)
    wanted = target.wanted(program, graph)
    find, shared = target.lookup(exported), target.places(exported)
    found = []
    for name, one in wanted.items():
        if one.place is not None and same_bytes(one.place, shared.get(name)):
            continue
        ours = one.give().detach().cpu()
        wrong = compared(name, ours, find(name, ours), exact=one.exact)
        if wrong is not None:
            found.append(wrong)
    return tuple(found), len(wanted)


def same_bytes(ours: Stored, theirs: Stored | None) -> bool:
    """Whether two places are one, in one file under two names."""
    if theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    same = (ours.offset, ours.length) == (theirs.offset, theirs.length)
    return same and theirs.file.exists() and ours.file.samefile(theirs.file)


def compared(name: str, ours: Tensor, theirs: Tensor | None, *, exact: bool) -> Differing | None:
    """How a weight differs, or None."""
    if theirs is None:
        return Differing(name, ABSENT)
    if ours.shape != theirs.shape:
        shapes = [str(list(t.shape)) for t in (theirs, ours)]
        return Differing(name, f"{shapes[0]} in the file, {shapes[1]} in the graph")
    if ours.dtype != theirs.dtype:
        dtypes = [str(t.dtype).removeprefix("torch.") for t in (theirs, ours)]
        return Differing(name, f"{dtypes[0]} in the file, {dtypes[1]} in the graph")
    if ours.equal(theirs):
        return None
    largest = float(ours.abs().nan_to_num(0.0, 0.0).max())
    apart, count = 0.0, 0
    a, b = ours.reshape(-1), theirs.reshape(-1)
    for start in range(0, a.numel(), PART):
        x, y = a[start : start + PART].double(), b[start : start + PART].double()
        same = (x == y) | (x.isnan() & y.isnan())
        distance = torch.where(same, 0.0, (x - y).abs().nan_to_num(float("inf"), float("inf")))
        wrong = distance > (0.0 if exact else rounding(x, y, ours.dtype, largest))
        count += int(wrong.sum())
        apart = max(apart, distance.where(wrong, 0.0).max().item())
    return Differing(name, f"{count:,} of {a.numel():,} numbers", apart) if count else None


def rounding(x: Tensor, y: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    """How far numbers may be apart that were computed twice: two steps of their dtype.

    Beside that sums of float32 numbers as large as the largest one.
    """
    if not dtype.is_floating_point:
        return torch.zeros_like(x)
    steps = 2 * torch.finfo(dtype).eps * torch.maximum(x.abs(), y.abs())
    return steps.nan_to_num(0.0, 0.0) + 8 * torch.finfo(torch.float32).eps * largest
