"""Which projections make an attention's queries, keys and values."""

from __future__ import annotations

from torch import fx

from peftc.dataflow.attention import Core
from peftc.dataflow.facts import Facts
from peftc.dataflow.fused import LAYOUT, REPEATS
from peftc.dataflow.projection import Projection

MOVES = LAYOUT | REPEATS | {"cat", "constant_pad_nd", "_to_copy"}


def made_of(
    facts: Facts, core: Core
) -> tuple[list[Projection], list[Projection], list[Projection]]:
    """The projections of the queries, of the keys and of the values.

    Where a model mixes queries and keys behind their projections, both come from the same ones:
    the widest makes queries (the first of several as wide), the last of the others keys.
    """
    queries, keys = facts.frontier(core.q), facts.frontier(core.k)
    values = facts.frontier(core.v)
    shared = {p.weight for p in queries}
    if len(shared) > 1 and shared == {p.weight for p in keys}:
        first = max(queries, key=lambda p: p.width)
        queries = [first]
        keys = [p for p in keys if p.weight != first.weight]
    parts = values if joined(facts, values, core.v) else last(values)
    return last(queries), last(keys), parts


def last(found: list[Projection]) -> list[Projection]:
    """The last projection: one weight may make the keys of two streams, joined before the core."""
    return [p for p in found if p.weight == found[-1].weight]


def joined(facts: Facts, found: list[Projection], consumer: fx.Node) -> bool:
    """Whether projections make parts of the features of a value, which are only joined."""
    paths = [facts.between(p.h, consumer) for p in found]
    if len({p.weight for p in found}) < 2 or any(
        facts.op[n] not in MOVES for path in paths for n in facts.of(path)
    ):
        return False
    common = paths[0]
    for path in paths[1:]:
        common &= path
    joins = [n for n in facts.of(common) if facts.op[n] == "cat"]
    axes = [(n.args[1] if len(n.args) > 1 else 0, n.meta["val"].dim()) for n in joins]
    return any(axis in (-1, dims - 1) for axis, dims in axes)
