"""A weight-decomposed update  ->  linear(x, r (W + s B A)): merged into the weight."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from peftc.capture.program import Program
from peftc.passes.base import Keeps, Pass, chosen, pieces
from peftc.passes.fold_low_rank import Summed, change_rows, summed
from peftc.pieces.dora import Dora

aten = torch.ops.aten


@dataclass
class FoldDora(Pass):
    """Merges every update whose own frozen linear makes the value it is added to.

    %h = linear(%x, %W, %b); %d = dora(%x, %h, %W, %b); add(%h, %d)  ->  linear(%x, %W', %b)

    An update is left as it is where anything else reads the rows of %W that it would change.
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
    found = summed(piece, module)
    if found is None or found.add.kwargs or not alone(piece, found):
        return

    def merged(weight: Tensor, some: slice) -> Tensor:
        return module.ratio(weight, some)[:, None] * module.direction(weight, some)

    change_rows(program, found.linear, found.rows, merged)
    found.add.replace_all_uses_with(found.base)


def alone(piece: fx.Node, found: Summed) -> bool:
    """Whether nothing but its linear and the update itself reads the rows of the weight."""
    linear = found.linear
    size: int = linear.weight.meta["val"].shape[linear.transposed]
    own = range(size)[found.rows]
    for node in linear.other_readers:
        reader, rows = reader_of(node, range(size))
        apart = rows.stop <= own.start or own.stop <= rows.start
        if reader is not piece and reader.users and not apart:
            return False
    return len(linear.weight.users) == 1


def reader_of(weight: fx.Node, rows: range) -> tuple[fx.Node, range]:
    """What reads a weight, past its turning and slicing, and which output features of it."""
    reader = next(iter(weight.users), weight)
    if reader.target is aten.slice.Tensor:
        _, _, start, stop = reader.args
        return reader_of(reader, rows[start:stop])  # type: ignore[misc]
    return reader_of(reader, rows) if reader.target is aten.t.default else (reader, rows)
