"""Where token positions enter: rows of a position table, or angles of rotary embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from peftc.dataflow.facts import Facts
from peftc.dataflow.site import Position

COUNTERS = frozenset({"arange", "cumsum"})
ANGLE_STEPS = frozenset(
    [
        "mul",
        "matmul",
        "bmm",
        "cat",
        "unsqueeze",
        "expand",
        "transpose",
        "permute",
        "view",
        "reshape",
        "clone",
        "contiguous",
        "_to_copy",
        "einsum",
        "div",
        "slice",
        "repeat_interleave",
        "repeat",
        "stack",
        "outer",
        "alias",
    ]
)


def positions(facts: Facts, stack_of, streams: dict[str, fx.Node]) -> list[Position]:
    """Every edge through which positions enter, of each stack."""
    found = []
    for node in facts.nodes:
        if (index := looked_up(facts, node)) is not None:
            on_stream = any(facts.is_ancestor(node, first) for first in streams.values())
            if on_stream and counted(facts, index):
                rows = node.args[0].meta["val"].shape[0]  # type: ignore[union-attr]
                found.append(Position(index, node, stack_of(node), rows))
        elif facts.op[node] in ("cos", "sin"):
            found += [Position(p, r, stack_of(node), None) for p, r in angle_sources(facts, node)]
    unique = {(p.positions, p.reader): p for p in found}
    return list(unique.values())


def looked_up(facts: Facts, node: fx.Node) -> fx.Node | None:
    """The integer tensor with which rows of a table are taken, by embedding or by indexing."""
    index = None
    if facts.op[node] == "embedding":
        index = node.args[1]
    elif facts.op[node] in ("index", "index_select"):
        table, index = node.args[0], node.args[-1]
        if isinstance(index, list | tuple) and len(index) == 1:
            index = index[0]
        if not isinstance(table, fx.Node) or facts.active(table):
            return None
    return index if isinstance(index, fx.Node) and is_integer(index) else None


def counted(facts: Facts, index: object) -> bool:
    """Whether an integer tensor counts tokens, and is not an input itself."""
    if not isinstance(index, fx.Node) or facts.strip(index).op == "placeholder":
        return False
    sources = facts.of(facts.ancestors[index])
    return any(facts.op[n] in COUNTERS or (n.op == "get_attr" and is_integer(n)) for n in sources)


def angle_sources(facts: Facts, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """(positions, the cast that reads them) behind a cosine or sine."""
    found, seen, waiting = [], set(), list(node.all_input_nodes)
    while waiting:
        n = waiting.pop()
        if n in seen or not facts.is_tensor(n):
            continue
        seen.add(n)
        if facts.op[n] not in ANGLE_STEPS:
            continue
        for source in n.all_input_nodes:
            if facts.is_tensor(source) and is_integer(source) and counted(facts, source):
                found.append((source, n))
            else:
                waiting.append(source)
    return found


def is_integer(node: fx.Node) -> bool:
    """Whether the node gives an integer tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32)
