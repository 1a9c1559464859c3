"""Which features of a projection belong to a site: found by following numbered features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.program import attribute
from peftc.dataflow.facts import Facts
from peftc.dataflow.projection import Projection

LAYOUT = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "transpose",
        "permute",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "getitem",
        "unsqueeze",
        "squeeze",
        "clone",
        "contiguous",
        "alias",
        "narrow",
        "index",
    ]
)

REPEATS = frozenset(["expand", "repeat", "repeat_interleave"])


def part_of(
    facts: Facts, projection: Projection, consumer: fx.Node
) -> tuple[fx.Node, tuple[int, ...]]:
    """(node, rows): the features of a projection that reach `consumer`, and where they stand.

    The output features are numbered, and the numbers go through the views, splits and transposes
    on the way to the consumer. The node is the first one that holds exactly these features, as
    (batch, length, features) in order; where there is none, it is the projection's own value.
    """
    path = facts.between(projection.h, consumer)
    numbers: dict[fx.Node, Any] = {projection.h: numbered(projection)}
    for node in facts.of(path):
        source = node.args[0] if node.args else None
        if facts.op[node] in LAYOUT and source in numbers:
            value = replay(facts, node, numbers[source])  # type: ignore[index]
            if value is not None:
                numbers[node] = value
    reached: set[int] = set()
    for node, value in numbers.items():
        on_path = [u for u in node.users if path >> facts.index[u] & 1]
        if isinstance(value, Tensor) and (
            node is consumer or any(u not in numbers for u in on_path)
        ):
            reached.update(value.flatten().tolist())
    rows = tuple(sorted(reached))
    if len(rows) == projection.width:
        return projection.h, rows
    for node, value in numbers.items():
        if isinstance(value, Tensor) and tuple(value.flatten().tolist()) == rows:
            shape = node.meta["val"].shape
            if len(shape) == 3 and shape[-1] == len(rows):
                return node, rows
    return projection.h, rows


def tiled(facts: Facts, projection: Projection, value: fx.Node, value_dim: int) -> bool:
    """Whether all heads of a projection come in turn, 0 1 0 1, in `value`, (batch, heads, ...)."""
    path = facts.between(projection.h, value)
    numbers: dict[fx.Node, Any] = {projection.h: numbered(projection)}
    for node in facts.of(path):
        source = node.args[0] if node.args else None
        if facts.op[node] in LAYOUT | REPEATS and source in numbers:
            numbers[node] = replay(facts, node, numbers[source])  # type: ignore[index]
    found = numbers.get(value)
    if not isinstance(found, Tensor) or found.dim() != 4:
        return False
    heads = (found[0, :, 0, 0] // value_dim).tolist()
    own = list(dict.fromkeys(heads))
    return 1 < len(own) < len(heads) and heads == own * (len(heads) // len(own))


def numbered(projection: Projection) -> Tensor:
    """Feature numbers in the shape of the projection's value, all other axes of size one."""
    dims = projection.h.meta["val"].dim()
    return torch.arange(projection.width).reshape(*[1] * (dims - 1), projection.width)


def replay(facts: Facts, node: fx.Node, value: Any) -> Any:
    """The node's layout change on feature numbers; None where it is not one.

    A cut through the tokens, of which there is one here, leaves the features as they are.
    """

    def number(a: Any) -> Any:
        if isinstance(a, fx.Node):
            if a is node.args[0]:
                return value
            return constant(facts, a) if facts.is_tensor(a) else size_of_one(a.meta["val"])
        if isinstance(a, list | tuple):
            return type(a)(map(number, a))
        return a

    try:
        found = node.target(*map(number, node.args), **node.kwargs)  # type: ignore[operator]
    except (RuntimeError, IndexError, TypeError):
        return None
    return value if facts.op[node] == "slice" and not found.numel() else found


def constant(facts: Facts, node: fx.Node) -> Tensor:
    """The tensor of a constant index: heads chosen by a list.

    Raises:
        TypeError: where it is none.
    """
    while node.op != "get_attr":
        if facts.op[node] not in ("clone", "alias", "_to_copy", "detach"):
            raise TypeError(f"{node} is not constant")
        node = node.all_input_nodes[0]
    return attribute(facts.program, str(node.target))


def size_of_one(value: Any) -> int:
    """A size where batch and length are one."""
    expression = getattr(getattr(value, "node", None), "expr", value)
    if isinstance(expression, int):
        return expression
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
