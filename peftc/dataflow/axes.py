"""Where an axis of a value stands after an operation, and which axis of a value holds features."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx

from peftc.dataflow.facts import Facts

CONVOLUTIONS = frozenset(["convolution", "conv1d", "conv2d", "conv3d"])
LAST = frozenset([
    "linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "embedding", "layer_norm",
    "native_layer_norm", "rms_norm", "_fused_rms_norm", "scaled_dot_product_attention",
])  # fmt: skip
SECOND = frozenset(["batch_norm", "_native_batch_norm_legit_no_training", "group_norm",
                    "native_group_norm", "instance_norm"])  # fmt: skip
RESHAPES = frozenset(["reshape", "view", "_unsafe_view", "flatten", "unflatten"])
REDUCTIONS = frozenset(["mean", "sum", "amax", "amin", "var", "std", "logsumexp"])
PARTS = frozenset(["split", "split_with_sizes", "chunk"])


def feature_axis(facts: Facts, node: fx.Node) -> int | None:
    """The axis along which a value's features stand, from the front; None where none is known.

    A convolution gives channels first, a linear and a norm features last; what only moves or
    combines values takes them along. An input's features are what its reader sums over.
    """
    op = facts.op[node]
    if node.op == "placeholder":
        return read_axis(facts, node)
    given = [n for n in facts.active_inputs(node) if isinstance(n.meta["val"], Tensor)]
    if op == "getitem":
        return feature_axis(facts, node.args[0])  # type: ignore[arg-type]
    value = node.meta["val"]
    dims = (value if isinstance(value, Tensor) else given[0].meta["val"]).dim()
    if op in LAST or not given:
        return dims - 1
    if op in CONVOLUTIONS:
        return channels(node)
    if op in SECOND:
        return 1
    source = max(given, key=lambda n: (n.meta["val"].is_floating_point(), n.meta["val"].dim()))
    axis = feature_axis(facts, source)
    if axis == source.meta["val"].dim() - 1 and op in RESHAPES:
        return dims - 1  # heads split off, or joined again
    return None if axis is None else moved(facts, node, source, axis)


def channels(convolution: fx.Node) -> int:
    """The axis of a convolution's channels, in what it reads as in what it gives."""
    x, weight = convolution.args[:2]
    batched = x.meta["val"].dim() == weight.meta["val"].dim()  # type: ignore[union-attr]
    return 1 if batched else 0


def read_axis(facts: Facts, node: fx.Node) -> int | None:
    """The axis of an input over which the first that computes with it sums or normalises."""
    while readers := [n for n in node.users if facts.is_tensor(n)]:
        reader = readers[0]
        if facts.op[reader] in CONVOLUTIONS:
            return channels(reader)
        if facts.op[reader] in LAST:
            return node.meta["val"].dim() - 1
        if facts.op[reader] not in ("_to_copy", "clone", "dropout"):
            return None
        node = reader
    return None


def moved(facts: Facts, node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Where the axis of `source`, which `node` reads, stands in its value; None where it is gone.

    An axis that is joined with another, or cut in two, is gone.
    """
    op, args = facts.op[node], node.args
    before, after = source.meta["val"], node.meta["val"]
    after = after[0] if isinstance(after, list | tuple) else after
    dims = before.dim()
    if op in ("permute", "transpose", "t", "mT"):
        order = turned(op, args, dims)
        return order.index(axis)
    if op == "unsqueeze":
        return axis + (args[1] % (dims + 1) <= axis)  # type: ignore[operator]
    if op == "squeeze":
        gone = (
            axes_of(args[1], dims)
            if len(args) > 1
            else {k for k, size in enumerate(before.shape) if str(size) == "1"}
        )
        return None if axis in gone else axis - sum(g < axis for g in gone)
    if op == "select" or op == "unbind":
        gone_axis = (args[1] if len(args) > 1 else 0) % dims  # type: ignore[operator]
        return None if axis == gone_axis else axis - (gone_axis < axis)
    if op in RESHAPES:
        return reshaped(before.shape, after.shape, axis)
    if op in REDUCTIONS:
        gone = axes_of(args[1], dims) if len(args) > 1 and args[1] is not None else set(range(dims))
        if axis in gone:
            return None
        return axis if after.dim() == dims else axis - sum(g < axis for g in gone)
    return axis + after.dim() - dims if after.dim() >= dims else None


def turned(op: str, args: tuple[Any, ...], dims: int) -> list[int]:
    """The order of axes after a permutation."""
    if op == "permute":
        return [d % dims for d in args[1]]
    a, b = (d % dims for d in args[1:3]) if op == "transpose" else (dims - 2, dims - 1)
    order = list(range(dims))
    order[a], order[b] = order[b], order[a]
    return order


def axes_of(given: Any, dims: int) -> set[int]:
    """The axes that an operation names, from the front."""
    return {d % dims for d in (given if isinstance(given, list | tuple) else [given])}


def reshaped(before: Any, after: Any, axis: int) -> int | None:
    """Where an axis stands after a reshape: as long, and behind or in front of as many elements."""
    size, behind = str(before[axis]), str(math.prod(before[axis + 1 :]))
    in_front = str(math.prod(before[:axis]))
    for k, other in enumerate(after):
        if str(other) == size and (
            str(math.prod(after[k + 1 :])) == behind or str(math.prod(after[:k])) == in_front
        ):
            return k
    return None
