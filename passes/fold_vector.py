"""l * (W x + b)  ->  (l W) x + l b, and W (l * x)  ->  (W l) x: vectors merged into weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from peftc.capture.program import Program, attribute
from peftc.passes.base import Keeps, Pass, set_parameter
from peftc.passes.linears import linear_of
from peftc.pieces.vector import Vector

aten = torch.ops.aten


@dataclass
class FoldVector(Pass):
    """Merges every scaling vector that a frozen linear makes, or alone reads.

    Left as it is where a weight is shared, or no linear stands next to the product.
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    def run(self, program: Program) -> None:
        """Merge, and let the readers of each product read what was scaled."""
        for node in list(program.graph.nodes):
            if node.op != "call_module" or len(node.users) != 1:
                continue
            module = attribute(program, str(node.target))
            product = next(iter(node.users))
            if not isinstance(module, Vector) or product.target is not aten.mul.Tensor:
                continue
            if merge(program, product, module.l.detach()):
                product.replace_all_uses_with(product.args[0])  # type: ignore[arg-type]
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()


def merge(program: Program, product: fx.Node, vector: torch.Tensor) -> bool:
    """Whether `vector` could be merged into a weight next to the product."""
    h = product.args[0]
    made_by = linear_of(h)  # type: ignore[arg-type]
    if made_by is not None and made_by.alone and len(h.users) == 1:  # type: ignore[union-attr]
        if made_by.bias is not None and len(made_by.bias.users) != 1:
            return False
        scale(program, made_by.weight, vector if made_by.transposed else vector[:, None])
        if made_by.bias is not None:
            scale(program, made_by.bias, vector)
        return True
    read_by = only_linear_reader(product)
    if read_by is not None and read_by.alone:
        scale(program, read_by.weight, vector[:, None] if read_by.transposed else vector)
        return True
    return False


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


def scale(program: Program, weight: fx.Node, factor: torch.Tensor) -> None:
    """Weight <- weight * factor, in storage of its own."""
    name = str(weight.target)
    value = attribute(program, name).detach()
    set_parameter(program, name, value * factor.to(value.dtype))
