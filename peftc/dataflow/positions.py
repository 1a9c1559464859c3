"""Where token positions enter: rows of a table, angles of rotary embeddings, logarithms."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from peftc.capture.fake import has_numbers
from peftc.capture.program import attribute
from peftc.dataflow.facts import Facts
from peftc.dataflow.site import Position

COUNTERS = frozenset({"arange", "cumsum"})
LOOKUPS = frozenset({"embedding", "index", "index_select", "gather"})
ANGLE_STEPS = frozenset([
    "mul", "matmul", "bmm", "cat", "unsqueeze", "expand", "transpose", "permute", "view",
    "reshape", "clone", "contiguous", "_to_copy", "einsum", "div", "slice",
    "repeat_interleave", "repeat", "stack", "outer", "alias",
])  # fmt: skip


def positions(facts: Facts, stack_of, streams: dict[str, fx.Node]) -> list[Position]:
    """Every edge through which positions enter, of each stack."""
    found = []
    for node in facts.nodes:
        if (index := looked_up(facts, node)) is not None:
            table = node.args[0].meta["val"]  # type: ignore[union-attr]
            on_stream = any(facts.is_ancestor(node, first) for first in streams.values())
            # Off the stream, a table is one of angles, or of biases by distance.
            if (on_stream or not relative(facts, index)) and counted(facts, index, table.shape[0]):
                rows = table.shape[1 if facts.op[node] == "gather" else 0]
                length = index.meta["val"].shape[-1]
                if isinstance(length, int) and length >= rows:
                    continue  # every row is taken: places of a grid, which a prefix does not move
                found.append(Position(index, node, stack_of(node), rows))
        elif facts.op[node] in ("cos", "sin", "polar"):
            found += [Position(p, r, stack_of(node), None) for p, r in angle_sources(facts, node)]
        elif facts.op[node] in ("log", "log1p"):  # queries scaled by how far along they are
            sources = angle_sources(facts, node, ANGLE_STEPS | {"add", "floor"})
            found += [
                Position(p, r, stack_of(node), None) for p, r in sources if not relative(facts, p)
            ]
    unique = {(p.positions, p.reader): p for p in found}
    return list(unique.values())


def looked_up(facts: Facts, node: fx.Node) -> fx.Node | None:
    """The integer tensor with which rows of a table are taken, by embedding or by indexing."""
    index = None
    if is_integer(node):
        return None
    if facts.op[node] == "embedding":
        index = node.args[1]
    elif facts.op[node] in ("index", "index_select", "gather"):
        table, index = node.args[0], node.args[2 if facts.op[node] == "gather" else -1]
        if isinstance(index, list | tuple) and len(index) == 1:
            index = index[0]
        if not isinstance(table, fx.Node) or facts.active(table):
            return None
    return index if isinstance(index, fx.Node) and is_integer(index) else None


def relative(facts: Facts, index: fx.Node) -> bool:
    """Whether an integer tensor holds distances: differences of two positions."""
    return any(
        facts.op[n] in ("sub", "rsub") and sum(map(facts.is_tensor, n.all_input_nodes)) > 1
        for n in facts.of(facts.ancestors[index])
    )


def counted(facts: Facts, index: object, rows: object = None) -> bool:
    """Whether an integer tensor counts tokens, for a table of `rows`, and is no input itself."""
    if not isinstance(index, fx.Node) or facts.strip(index).op == "placeholder":
        return False
    waiting, seen = [index], set()
    while waiting:
        n = waiting.pop()
        if n in seen or not is_integer(n):
            continue
        seen.add(n)
        if facts.op[n] in COUNTERS or (n.op == "get_attr" and is_count(facts, n, rows)):
            return True
        # What is looked up comes from the table, whatever the rows are chosen by.
        waiting += n.all_input_nodes[:1] if facts.op[n] in LOOKUPS else n.all_input_nodes
    return False


def is_count(facts: Facts, node: fx.Node, rows: object) -> bool:
    """Whether a buffer is 0, 1, 2, ...; of a buffer without data, whether it can be."""
    if not is_integer(node):
        return False
    value = attribute(facts.program, str(node.target)).flatten()
    if value.numel() < 2:
        return False
    if not has_numbers(value):
        return not isinstance(rows, int) or value.numel() <= rows
    return bool(torch.equal(value, torch.arange(value.numel(), device=value.device)))


def angle_sources(
    facts: Facts, node: fx.Node, steps: frozenset[str] = ANGLE_STEPS
) -> list[tuple[fx.Node, fx.Node]]:
    """(positions, the cast that reads them) behind a cosine, sine or logarithm."""
    found, seen, waiting = [], set(), list(node.all_input_nodes)
    while waiting:
        n = waiting.pop()
        if n in seen or not facts.is_tensor(n):
            continue
        seen.add(n)
        if facts.op[n] not in steps:
            continue
        for source in n.all_input_nodes:
            if facts.is_tensor(source) and is_integer(source) and counted(facts, source):
                found.append((source, n))
            else:
                waiting.append(source)
    return found


def is_integer(node: fx.Node) -> bool:
    """Whether the node gives a tensor of integers or truth values."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32, torch.bool)
