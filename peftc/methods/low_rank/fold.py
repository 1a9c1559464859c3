"""linear(x, W) + s B A x  ->  linear(x, W + s B A): low-rank updates merged into the weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from peftc.capture.program import Program
from peftc.methods.low_rank.module import LowRank
from peftc.passes.base import change
from peftc.passes.composed import Composed, composed, free, made_by
from peftc.passes.folding import Pattern

aten = torch.ops.aten
ROWS = 256  # of a product that are in memory at a time


class MergeLowRank(Pattern):
    """%h = linear(%x, %W, %b); add(%h, low_rank(%x), alpha=s)  ->  linear(%x, %W', %b').

    W' = W + s B A, at the rows of the site where the linear is fused; b' = b + s b of the update.
    And %h = embedding(%W, %ids); add(%h, low_rank(%ids), alpha=s)  ->  embedding(%W', %ids), with
    W' = W + s (B A)^T.

    An update is left as it is where anything else reads the rows of %W that it would change (tied
    or shared weights), or where the value it is added to is not the linear's: then the merged
    graph would give other numbers.
    """

    piece: ClassVar[type[nn.Module]] = LowRank

    def merge(self, program: Program, node: fx.Node, module: LowRank) -> bool:
        """Merge one update where that keeps the outputs."""
        found = composed(program, node)
        if found is None or found.multiplies:
            return False
        if found.base.target is aten.embedding.default:
            return merge_table(program, found, module)
        made = made_by(found)
        if made is None or made.linear.x is not node.args[0] or not made.weight_is_free(node):
            return False
        linear, rows = made.linear, made.rows
        if module.b is not None:
            if not made.bias_is_free(node):
                return False
            added = found.factor * module.b.detach()
            change_rows(program, linear.bias, rows, lambda b, some: b + added[some].to(b.dtype))  # type: ignore[arg-type]

        def merged(weight: Tensor, some: slice) -> Tensor:
            return weight + by_row(found.factor, weight, some) * module.merged(some)

        change_rows(program, linear.weight, rows, merged, transposed=linear.transposed)
        found.replace()
        return True


def merge_table(program: Program, found: Composed, module: LowRank) -> bool:
    """Whether the update of an embedding could be merged into its table: (ids, width)."""
    table, ids, *_ = found.base.args
    if not isinstance(table, fx.Node) or table.op != "get_attr" or found.rows is not None:
        return False
    rows = torch.arange(int(table.meta["val"].shape[0]))
    alone = list(found.base.users) == [found.total] and free(table, rows, 0, (table,))
    if not alone or ids is not found.piece.args[0]:
        return False
    factor = found.factor

    def merged(weight: Tensor, some: slice) -> Tensor:
        update = module.A.T[some] @ module.B.T
        update = update if module.b is None else update + module.b
        return weight + factor.to(update) * update

    change_rows(program, table, rows, merged)
    found.replace()
    return True


def by_row(factor: Tensor, weight: Tensor, some: slice) -> Tensor:
    """A factor for some rows of a matrix, (): one for all, or (rows, 1)."""
    return factor.to(weight.device) if factor.dim() == 0 else factor[some, None].to(weight)


def change_rows(
    program: Program,
    parameter: fx.Node,
    rows: Tensor,
    by: Callable[[Tensor, slice], Tensor],
    *,
    transposed: bool = False,
) -> None:
    """W[rows] = by(W[rows]), in a parameter of its own storage, rows being output features.

    `by` is given some of these rows at a time, and which they are: what it computes on the way
    never has the weight's size. It is rounded to the weight's dtype once, at the end.
    """

    def changed(weight: Tensor) -> Tensor:
        view = weight.T if transposed else weight
        for k in range(0, len(rows), ROWS):
            some = slice(k, k + ROWS)
            at = rows[some].to(weight.device)
            view[at] = by(view[at], some).to(weight.dtype)
        return weight

    change(program, str(parameter.target), changed)
