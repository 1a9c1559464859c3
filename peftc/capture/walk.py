"""What a node is computed from, and what is computed from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, fx

from peftc.capture.program import input_name


def walk(start: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """Everything reached by `step`, `start` itself only where a step leads there."""
    found: set[fx.Node] = set()
    waiting = list(start)
    while waiting:
        for other in step(waiting.pop()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def ancestors(*nodes: fx.Node) -> set[fx.Node]:
    """All nodes that any of `nodes` is computed from."""
    return walk(nodes, lambda n: n.all_input_nodes)


def descendants(*nodes: fx.Node) -> set[fx.Node]:
    """All nodes computed from any of `nodes`."""
    return walk(nodes, lambda n: list(n.users))


def data_ancestors(*nodes: fx.Node) -> set[fx.Node]:
    """`nodes` and all that their numbers come from, sizes left out."""
    data = walk(
        nodes, lambda n: [m for m in n.all_input_nodes if isinstance(m.meta["val"], Tensor)]
    )
    return data | set(nodes)


def back_to_inputs(*nodes: fx.Node) -> set[fx.Node]:
    """`nodes` and all they are computed from, back to inputs and what stands in their place."""
    found = walk(nodes, lambda n: n.all_input_nodes if input_name(n) is None else ())
    return found | set(nodes)


def module_of(node: fx.Node) -> str:
    """The path of the innermost module whose forward made this node; "" for the model itself."""
    if "module" in node.meta:
        return node.meta["module"]
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path.removeprefix("L['self'].")
