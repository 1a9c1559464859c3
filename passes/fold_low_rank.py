"""linear(x, W) + s B A x  ->  linear(x, W + s B A): low-rank updates merged into the weight."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from peftc.capture.program import Program
from peftc.passes.base import Keeps, Pass, change, chosen, pieces
from peftc.passes.linears import Linear, maker_of
from peftc.pieces.low_rank import LowRank

aten = torch.ops.aten
ROWS = 256  # of a product that are in memory at a time


@dataclass
class FoldLowRank(Pass):
    """Merges every low-rank update that is added to what its own frozen linear gives.

    An update is left as it is where its weight also serves another linear (tied or shared
    weights), or where the value it is added to is not the linear's, since the merged graph
    would then give other numbers.
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS
    only: Collection[str] | None = None  # ids of insertions; None for all

    def run(self, program: Program) -> None:
        """Merge, and let the readers of each sum read the linear again."""
        for node, module in pieces(program, LowRank):
            if type(module) is LowRank and len(node.users) == 1 and chosen(node, self.only):
                merge(program, node, module)
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()


def merge(program: Program, piece: fx.Node, module: LowRank) -> None:
    """Merge one update where that keeps the outputs."""
    found = summed(piece, module)
    if found is None or not found.linear.alone:
        return
    add, linear, rows = found.add, found.linear, found.rows
    scale = float(add.kwargs.get("alpha", 1.0))  # type: ignore[arg-type]
    if module.b is not None:
        if linear.bias is None or len(linear.bias.users) != 1:
            return
        merge_bias(program, linear.bias, module.b.detach() * scale, rows)

    def merged(weight: Tensor, some: slice) -> Tensor:
        return weight + scale * module.merged(some)

    change_rows(program, linear, rows, merged)
    add.replace_all_uses_with(found.base)


@dataclass(frozen=True)
class Summed:
    """%add = %base + update, where `base` is what `linear` gives as its output features `rows`."""

    add: fx.Node
    base: fx.Node
    linear: Linear
    rows: slice


def summed(piece: fx.Node, module: LowRank) -> Summed | None:
    """The sum of an update with what a frozen linear gives from the same input, if it is one.

    An update of some features of a fused linear is padded to all of them before it is added.
    """
    add = next(iter(piece.users))
    rows = None
    if add.target is aten.constant_pad_nd.default and len(add.users) == 1:
        start: int = add.args[1][0]  # type: ignore[index,assignment]
        rows = slice(start, start + module.B.shape[0])
        add = next(iter(add.users))
    base = add.args[0]
    if add.target is not aten.add.Tensor or not isinstance(base, fx.Node):
        return None
    maker = maker_of(base)
    if maker is None or maker[0].x is not piece.args[0]:
        return None
    linear, part = maker
    return Summed(add, base, linear, rows or part)


def merge_bias(program: Program, bias: fx.Node, delta: Tensor, rows: slice) -> None:
    """b[rows] += delta, in a bias of its own storage."""

    def merged(value: Tensor) -> Tensor:
        value[rows] += delta.to(value.dtype)
        return value

    change(program, str(bias.target), merged)


def change_rows(
    program: Program, linear: Linear, rows: slice, by: Callable[[Tensor, slice], Tensor]
) -> None:
    """W[rows] = by(W[rows]), in a weight of its own storage, rows being output features.

    `by` is given some of these rows at a time, and which they are: what it computes on the way
    never has the weight's size. It is rounded to the weight's dtype once, at the end.
    """

    def changed(weight: Tensor) -> Tensor:
        view = (weight.T if linear.transposed else weight)[rows]
        for k in range(0, len(view), ROWS):
            some = slice(k, k + ROWS)
            view[some] = by(view[some], some)
        return weight

    change(program, str(linear.weight.target), changed)
