"""einsum -> matmul: products that are written with letters, as the analysis reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OperatorBase


def einsum(equation: str, operands: Sequence[Tensor], *, path: Any = None) -> Tensor:
    """`ibnd,jbnd->bnij` of q and k  ->  matmul(q.permute(1, 2, 0, 3), k.permute(1, 2, 3, 0)).

    Letters of both factors and of the result are batch axes, those of both factors alone are
    summed. Without batch axes, `ibh,hnd->ibnd`, the others are flattened: x (ib, h) times W
    (h, nd), which is how a linear looks. What is no such product of two (one factor, three, a
    trace, an ellipsis) stays as it is.
    """
    sources, _, target = equation.replace(" ", "").partition("->")
    left, _, right = sources.partition(",")
    if len(operands) == 1 and target and sorted(sources) == sorted(target):
        return turned(operands[0], [sources.index(c) for c in target])
    both = set(left) & set(right)
    batch = [c for c in target if c in both]
    summed = sorted(both - set(target))  # the order in which einsum adds, to the last bit
    rows = [c for c in left if c not in both]
    columns = [c for c in right if c not in both]
    if (
        len(operands) != 2
        or "." in equation
        or any(len(set(letters)) != len(letters) for letters in (left, right, target))
        or sorted(target) != sorted([*batch, *rows, *columns])
        or not (summed and rows and columns)
        or (batch and not len(summed) == len(rows) == len(columns) == 1)
    ):
        return NotImplemented
    x = turned(operands[0], [left.index(c) for c in (*batch, *rows, *summed)])
    y = turned(operands[1], [right.index(c) for c in (*batch, *summed, *columns)])
    if batch:
        h = torch.matmul(x, y)
    else:
        count = len(summed)
        x, y = x.flatten(len(rows)), y.flatten(count).flatten(0, count - 1)
        # One product of all rows, as einsum multiplies them; of an expanded x, matmul makes many.
        h = torch.mm(x.reshape(-1, x.shape[-1]), y).reshape(*x.shape[:-1], y.shape[-1])
        sizes = [operands[1].shape[right.index(c)] for c in columns]
        h = h.reshape(*h.shape[:-1], *sizes)
    made = [*batch, *rows, *columns]
    return turned(h, [made.index(c) for c in target])


def turned(x: Tensor, axes: list[int]) -> Tensor:
    """The tensor with its axes in this order; itself where they are."""
    return x if axes == sorted(axes) else x.permute(axes)


DECOMPOSITIONS: dict[OperatorBase, Callable[..., Any]] = {torch.ops.aten.einsum.default: einsum}
