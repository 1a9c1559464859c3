"""l (W x + b)  ->  (l W) x + l b, W (l x)  ->  (W l) x, W x + b + l  ->  W x + (b + l)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from peftc.capture.program import Program
from peftc.methods.low_rank.fold import change_rows
from peftc.methods.vector.module import Vector
from peftc.passes.composed import Composed, composed, made_by
from peftc.passes.folding import Pattern
from peftc.passes.linears import Linear, linear_of

aten = torch.ops.aten


class MergeVector(Pattern):
    """A vector that scales what a frozen linear makes or alone reads, or is added to the former.

    Left as it is where a weight is shared, where no linear stands next to a product, and where
    the linear beneath a sum has no bias.
    """

    piece: ClassVar[type[nn.Module]] = Vector

    def merge(self, program: Program, node: fx.Node, module: Vector) -> bool:
        """Merge one vector where that keeps the outputs."""
        found = composed(program, node)
        if found is None:
            return False
        vector = module.l.detach() * found.factor.to(module.l)
        if found.multiplies:
            done = scale_maker(program, found, vector) or scale_reader(program, found, vector)
        else:
            done = add_to_bias(program, found, vector)
        if done:
            found.replace()
        return done


def add_to_bias(program: Program, found: Composed, vector: Tensor) -> bool:
    """Whether a vector that is added could be merged into the bias beneath it."""
    made = made_by(found)
    if made is None or made.linear.bias is None or not made.bias_is_free(found.piece):
        return False
    bias = made.linear.bias
    change_rows(program, bias, made.rows, lambda b, some: b + vector[some].to(b))
    return True


def scale_maker(program: Program, found: Composed, vector: Tensor) -> bool:
    """Whether a vector could be merged into the linear that makes what it scales."""
    made = made_by(found)
    if made is None or not made.weight_is_free(found.piece):
        return False
    bias = made.linear.bias
    if bias is not None:
        if not made.bias_is_free(found.piece):
            return False
        change_rows(program, bias, made.rows, lambda b, some: b * vector[some].to(b))
    scale(program, made.linear, vector, made.rows, outputs=True)
    return True


def scale_reader(program: Program, found: Composed, vector: Tensor) -> bool:
    """Whether a vector could be merged into the linear that alone reads what it scales."""
    linear = only_linear_reader(found.total)
    if linear is None or not linear.alone or found.rows is not None:
        return False
    scale(program, linear, vector, torch.arange(len(vector)), outputs=False)
    return True


def scale(program: Program, linear: Linear, vector: Tensor, rows: Tensor, *, outputs: bool) -> None:
    """W[rows] *= vector, by its output features or by its input features."""

    def scaled(weight: Tensor, some: slice) -> Tensor:
        return weight * vector[some, None].to(weight)

    transposed = linear.transposed if outputs else not linear.transposed
    change_rows(program, linear.weight, rows, scaled, transposed=transposed)


def only_linear_reader(node: fx.Node) -> Linear | None:
    """The linear that alone reads `node`, or None."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    if reader.target is aten.reshape.default and len(reader.users) == 1:  # x W is on flattened rows
        reader = next(iter(reader.users))
        reader = next(iter(reader.users)) if len(reader.users) == 1 else reader
    linear = linear_of(reader)
    return linear if linear is not None and linear.x is node else None
