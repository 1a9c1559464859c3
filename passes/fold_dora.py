"""A weight-decomposed update  ->  linear(x, r (W + s B A)): merged into the weight."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from peftc.capture.program import Program, attribute
from peftc.passes.base import Keeps, Pass, change, chosen, pieces
from peftc.passes.linears import maker_of
from peftc.pieces.dora import Dora

aten = torch.ops.aten


@dataclass
class FoldDora(Pass):
    """Merges every update whose own frozen linear makes the value it is added to.

    %h = linear(%x, %W, %b); %d = dora(%x, %h, %W, %b); add(%h, %d)  ->  linear(%x, %W', %b)
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS
    only: Collection[str] | None = None  # ids of insertions; None for all

    def run(self, program: Program) -> None:
        """Merge, and let the readers of each sum read the linear again."""
        for node, module in pieces(program, Dora):
            if len(node.users) == 1 and chosen(node, self.only):
                merge(program, node, module)
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()


def merge(program: Program, piece: fx.Node, module: Dora) -> None:
    """Merge one update where that keeps the outputs."""
    add = next(iter(piece.users))
    rows = None
    if add.target is aten.constant_pad_nd.default and len(add.users) == 1:
        start: int = add.args[1][0]  # type: ignore[index,assignment]
        rows = slice(start, start + module.B.shape[0])
        add = next(iter(add.users))
    base = add.args[0]
    if add.target is not aten.add.Tensor or not isinstance(base, fx.Node) or add.kwargs:
        return
    maker = maker_of(base)
    if maker is None:
        return
    linear, part = maker
    rows = rows or part
    readers = [u for n in linear.other_readers for u in n.users]
    readers += [v for u in readers if u.op == "call_function" for v in u.users]
    updates = [u for u in readers if u.op == "call_module"]
    if linear.x is not piece.args[0] or len(linear.weight.users) > 1:
        return
    if not all(isinstance(attribute(program, str(u.target)), Dora) for u in updates):
        return

    def merged(weight: torch.Tensor) -> torch.Tensor:
        view = (weight.T if linear.transposed else weight)[rows]
        ratio = module.ratio(view).to(weight.dtype)
        view.add_(module.scale * module.merged().to(weight.dtype)).mul_(ratio[:, None])
        return weight

    change(program, str(linear.weight.target), merged)
    add.replace_all_uses_with(base)
