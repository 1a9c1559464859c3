"""linear(x, W) + s B A x  ->  linear(x, W + s B A): low-rank updates merged into the weight."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

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
                self.merge(program, node, module)
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()

    def merge(self, program: Program, piece: fx.Node, module: LowRank) -> None:
        """Merge one update where that keeps the outputs."""
        add = next(iter(piece.users))
        rows = None
        if add.target is aten.constant_pad_nd.default and len(add.users) == 1:
            rows = slice(add.args[1][0], add.args[1][0] + module.B.shape[0])  # type: ignore[index]
            add = next(iter(add.users))
        if add.target is not aten.add.Tensor:
            return
        base = add.args[0]
        if not isinstance(base, fx.Node):
            return
        maker = maker_of(base)
        if maker is None:
            return
        linear, part = maker
        if linear.x is not piece.args[0] or not linear.alone:
            return
        scale = float(add.kwargs.get("alpha", 1.0))  # type: ignore[arg-type]
        if module.b is not None:
            if linear.bias is None or len(linear.bias.users) != 1:
                return
            merge_bias(program, linear.bias, module.b.detach() * scale, rows or part)
        merge_rows(program, linear, module, scale, rows or part)
        add.replace_all_uses_with(base)


def merge_bias(program: Program, bias: fx.Node, delta: torch.Tensor, rows: slice) -> None:
    """b[rows] += delta, in a bias of its own storage."""

    def merged(value: torch.Tensor) -> torch.Tensor:
        value[rows] += delta.to(value.dtype)
        return value

    change(program, str(bias.target), merged)


def merge_rows(
    program: Program, linear: Linear, module: LowRank, scale: float, rows: slice
) -> None:
    """W[rows] += scale s B A, in a weight of its own storage, rows being output features.

    The product is made when the weight is, some rows at a time: it never has the weight's size.
    """

    def merged(weight: torch.Tensor) -> torch.Tensor:
        view = (weight.T if linear.transposed else weight)[rows]
        for k in range(0, len(view), ROWS):
            some = slice(k, k + ROWS)
            view[some] += (module.merged(some).detach() * scale).to(weight.dtype)
        return weight

    change(program, str(linear.weight.target), merged)
