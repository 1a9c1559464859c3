"""The embeddings: the value each stack reads in the place of its ids, patches or frames."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from peftc.capture.program import input_name
from peftc.capture.walk import module_of
from peftc.dataflow.facts import Facts
from peftc.dataflow.operations import feature_width, lookup_of
from peftc.dataflow.positions import COUNTERS
from peftc.dataflow.projection import weight_of
from peftc.dataflow.select import within
from peftc.dataflow.site import Embedding, Site


def embeddings(facts: Facts, stack_of: Callable[[fx.Node], str]) -> list[Embedding]:
    """The token embedding's output of each stack that reads ids."""
    found: dict[str, Embedding] = {}
    for node in facts.nodes:
        if facts.op[node] != "embedding":
            continue
        ids = ids_behind(facts, node.args[1])  # type: ignore[arg-type]
        if ids is None:
            continue
        stack = stack_of(ids)
        table = weight_of(facts, node.args[0])
        if stack in found or table is None:
            continue
        h = module_output(facts, node)
        site = Site(
            "embed.out", None, stack, module_of(node), h, feature_width(h) or 0,
            readers=tuple(h.users), lookup=lookup_of(node),
        )  # fmt: skip
        found[stack] = Embedding(site, ids, table)
    return list(found.values())


def ids_behind(facts: Facts, index: fx.Node) -> fx.Node | None:
    """The ids that an embedding reads, special ones possibly replaced; None for positions."""
    sources = facts.of(facts.ancestors[index])
    inputs = [n for n in sources if input_name(n) is not None]
    ids = inputs[-1] if inputs else None  # those of a decoder may be made of the others
    if ids is None or not str(input_name(ids)).endswith("input_ids"):
        return None
    if any(not facts.is_ancestor(n, ids) for n in inputs):
        return None
    return None if any(facts.op[n] in COUNTERS for n in sources) else ids


def leaving(facts: Facts, node: fx.Node) -> fx.Node | None:
    """The one value that leaves a module and is made of `node` and weights; None if others."""
    path = module_of(node)
    inside = [n for n in facts.of(facts.descendants[node]) if path and within(n, path)]
    ends = [n for n in inside if any(not within(u, path) for u in n.users)]
    if len(ends) != 1 or feature_width(ends[0]) != feature_width(node):
        return None
    made = facts.between(node, ends[0])
    read = {m for n in facts.of(made) for m in n.all_input_nodes if m is not node}
    given = [m for m in read if not made >> facts.index[m] & 1 and facts.is_tensor(m)]
    alone = all(isinstance(size, int) for m in given for size in m.meta["val"].shape)
    return ends[0] if alone and not made & facts.projecting else None


def module_output(facts: Facts, node: fx.Node) -> fx.Node:
    """The last value of the module that `node` is in, along a single line of readers.

    Where modules inside it make more of the value alone, as a norm does, what leaves them.
    """
    if (whole := leaving(facts, node)) is not None:
        return whole
    while len(node.users) == 1:
        reader = next(iter(node.users))
        if module_of(reader) != module_of(node) or not module_of(node):
            break
        node = reader
    return node


def sensed(facts: Facts, start: fx.Node) -> bool:
    """Whether a stream, (batch, places, width), starts from an image or a sound, not from ids."""
    value = start.meta["val"]
    if value.dim() != 3 or feature_width(start) is None or isinstance(value.shape[0], int):
        return False
    made_of = facts.of(facts.ancestors[start] & facts.inputs)
    return any(n.meta["val"].is_floating_point() for n in made_of)


def entry(facts: Facts, stack: str, start: fx.Node) -> Site:
    """The value with which a stream starts: patches or frames, with class token and positions."""
    readers = tuple(u for u in start.users if facts.is_tensor(u))
    width = feature_width(start) or 0
    return Site("embed.out", None, stack, module_of(start), start, width, readers=readers)
