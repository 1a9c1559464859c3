"""l * (W x + b)  ->  (l W) x + l b, and W (l * x)  ->  (W l) x: vectors merged into weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.passes.base import Keeps, Pass, change, chosen, pieces
from peftc.passes.linears import linear_of, maker_of
from peftc.pieces.vector import Vector

aten = torch.ops.aten


@dataclass
class FoldVector(Pass):
    """Merges every scaling vector that a frozen linear makes, or alone reads.

    Left as it is where a weight is shared, or no linear stands next to the product.
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS
    only: Collection[str] | None = None  # ids of insertions; None for all

    def run(self, program: Program) -> None:
        """Merge, and let the readers of each product read what was scaled."""
        for node, module in pieces(program, Vector):
            product = next(iter(node.users))
            skipped = len(node.users) != 1 or not chosen(node, self.only)
            if product.target is not aten.mul.Tensor or skipped:
                continue
            if merge(program, product, module.l.detach()):
                product.replace_all_uses_with(product.args[0])  # type: ignore[arg-type]
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()


def merge(program: Program, product: fx.Node, vector: torch.Tensor) -> bool:
    """Whether `vector` could be merged into a weight next to the product."""
    h = product.args[0]
    if not isinstance(h, fx.Node) or len(h.users) != 1:
        return merge_into_reader(program, product, vector)
    maker = maker_of(h)
    if maker is None or not maker[0].alone:
        return merge_into_reader(program, product, vector)
    made_by, rows = maker
    if made_by.bias is not None and len(made_by.bias.users) != 1:
        return False
    scale(program, made_by.weight, vector, rows, column=made_by.transposed)
    if made_by.bias is not None:
        scale(program, made_by.bias, vector, rows, column=True)
    return True


def merge_into_reader(program: Program, product: fx.Node, vector: torch.Tensor) -> bool:
    """Whether `vector` could be merged into the linear that alone reads the product."""
    read_by = only_linear_reader(product)
    if read_by is None or not read_by.alone:
        return False
    scale(program, read_by.weight, vector, slice(None), column=not read_by.transposed)
    return True


def only_linear_reader(node: fx.Node):
    """The linear that alone reads `node`, or None."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    if reader.target is aten.reshape.default and len(reader.users) == 1:  # x W is on flattened rows
        reader = next(iter(reader.users))
        reader = next(iter(reader.users)) if len(reader.users) == 1 else reader
    linear = linear_of(reader)
    return linear if linear is not None and linear.x is node else None


def scale(
    program: Program, weight: fx.Node, factor: torch.Tensor, part: slice, *, column: bool
) -> None:
    """weight[..., part] (its columns) or weight[part] (its rows) times factor, in a copy."""

    def scaled(value: torch.Tensor) -> torch.Tensor:
        view = value if column else value.T
        view[..., part] *= factor.to(value.dtype)
        return value

    change(program, str(weight.target), scaled)
