"""positions  ->  positions + P: real tokens count on behind a prefix, as behind a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.capture.values import refresh
from peftc.dataflow.site import Position
from peftc.passes.base import Pass, add_module, after, call, call_module, current, redirect, refuse
from peftc.passes.infix import Infix
from peftc.passes.tasks import task_ids
from peftc.pieces.bank import ShiftedRows

aten = torch.ops.aten


@dataclass
class ShiftPositions(Pass):
    """%reader(%positions)  ->  %reader(add(%positions, P)): real tokens start at position P.

    What a cache of P earlier tokens does to the model's own positions. Relative positions among
    real tokens do not change, so relative biases are left alone. With `infix` only the tokens
    behind it move: %reader(add(%positions, mul(%behind, P))).
    """

    positions: Sequence[Position]
    by: int | ShiftedRows
    infix: Infix | None = None
    target: str = ""  # the path of a module that shifts rows apart

    @property
    def name(self) -> str:
        """What reports call this pass."""
        where = "" if self.infix is None else f" from token {self.infix.before}"
        by = self.by if isinstance(self.by, int) else ", ".join(map(str, self.by.sizes))
        return f"shift positions by {by}{where}"

    def run(self, program: Program) -> None:
        """Add `by` on every edge through which positions enter."""
        shifted: dict[fx.Node, fx.Node] = {}
        for p in self.positions:
            node = current(p.positions, p.reader)
            if node not in shifted:
                shifted[node] = self.shift(program, node, p.stack)
            redirect(node, shifted[node], (p.reader,), own=True)
            p.reader.meta["stale"] = self.infix is not None or not isinstance(self.by, int)
        refresh(program)

    def shift(self, program: Program, node: fx.Node, stack: str) -> fx.Node:
        """The positions, moved."""
        path = node.meta["module"]
        if isinstance(self.by, ShiftedRows):
            return self.by_rows(program, node, self.by)
        if self.infix is None:
            with after(node):
                return call(program, aten.add.Tensor, (node, self.by), path)
        behind = self.infix.behind(program, stack)
        batch, length = map(str, behind.meta["val"].shape)
        first, *others = map(str, node.meta["val"].shape)
        if first not in ("1", batch) or sorted(set(others) - {"1"}) != [length]:
            raise refuse(
                f"the positions that {path} reads have no row for each example, "
                "so that only some of them could count on behind an infix",
                code="E110",
                help=("positions: keep",),
            )
        with after(node, behind):
            for axis, size in enumerate(others, 1):
                if size == "1":
                    behind = call(program, aten.unsqueeze.default, (behind, axis), path)
            number = call(program, aten._to_copy.default, (behind,), path, dtype=torch.int64)
            by = call(program, aten.mul.Tensor, (number, self.by), path)
            return call(program, aten.add.Tensor, (node, by), path)

    def by_rows(self, program: Program, node: fx.Node, by: ShiftedRows) -> fx.Node:
        """The positions, each row moved by the length of its own task's prefix."""
        path = node.meta["module"]
        rows, shape = task_ids(program), node.meta["val"].shape
        if len(shape) < 2 or str(shape[0]) not in ("1", str(rows.meta["val"].shape[0])):
            raise refuse(
                f"the positions that {path} reads have no row for each example, so that tasks "
                "cannot have prefixes of different lengths",
                help=("positions: keep", "one length for all tasks"),
            )
        add_module(program, self.target, by.to(rows.meta["val"].device))
        with after(node, rows):
            return call_module(program, self.target, (rows, node), path)
