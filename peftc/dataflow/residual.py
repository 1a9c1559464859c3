"""The residual stream: additions of a skip value and the branches computed from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from peftc.dataflow.facts import Facts
from peftc.dataflow.operations import feature_width


@dataclass(frozen=True)
class Residual:
    """add = stream + the sum of terms, each computed from `skip`, the stream behind casts."""

    add: fx.Node
    skip: fx.Node
    stream: fx.Node
    branch: fx.Node
    terms: tuple[fx.Node, ...]

    def readers(self, term: fx.Node, facts: Facts) -> tuple[fx.Node, ...]:
        """The additions that read a term on its way into the sum."""
        return tuple(
            u
            for u in term.users
            if facts.op[u] in ("add", "add_") and facts.is_ancestor(u, self.add)
        )


def residuals(facts: Facts) -> list[Residual]:
    """Every residual addition, in the graph's order.

    add(skip, branch) is one where branch is computed from skip through a projection. Sums of
    branches are flattened: blocks with attention and feed-forward side by side give two terms.
    """
    found: list[Residual] = []
    skips: dict[fx.Node, fx.Node] = {}
    for node in facts.nodes:
        if facts.op[node] != "add" or feature_width(node) is None:
            continue
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if len(operands) != 2 or not all(map(facts.active, operands)):
            continue
        pair = best_pair(facts, operands, skips)
        if pair is not None:
            skip, stream, branch = pair
            skips[node] = skip
            summands = tuple(terms(facts, branch, skip, skips))
            found.append(Residual(node, skip, stream, branch, summands))
    return found


def around(facts: Facts, found: list[Residual]) -> list[Residual]:
    """The residuals whose branch is a stream of its own: all that it adds are blocks inside it.

    A stack that is run again on its own sum, or an early value that joins the stream once more.
    """
    regions = {r: facts.between(r.skip, r.branch) for r in found}
    result = []
    for outer, region in regions.items():
        inner = 0
        for r in found:
            if r is not outer and region >> facts.index[r.add] & 1:
                inner |= regions[r]
        made_by = facts.mask(p.node for p in facts.frontier(outer.branch, region))
        if made_by and not made_by & ~inner:
            result.append(outer)
    return result


def best_pair(
    facts: Facts, operands: list[fx.Node], skips: dict[fx.Node, fx.Node]
) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """(skip, stream, branch) of an addition, the latest skip where both readings hold."""
    pairs = []
    for x, branch in (operands, operands[::-1]):
        bare = facts.strip(x)
        for skip in (bare, x):
            if projected(facts, skip, branch):
                pairs.append((skip, x, branch))
                break
        else:
            # (skip + first branch) + second branch, both from the same skip
            origin = skips.get(bare)
            if origin is not None and projected(facts, origin, branch):
                pairs.append((origin, origin, branch))
    return max(pairs, key=lambda p: facts.index[p[0]]) if pairs else None


def projected(facts: Facts, skip: fx.Node, branch: fx.Node) -> bool:
    """Whether `branch` is computed from `skip` through a projection."""
    return skip is not branch and bool(facts.between(skip, branch) & facts.projecting)


def terms(
    facts: Facts, branch: fx.Node, skip: fx.Node, skips: dict[fx.Node, fx.Node]
) -> list[fx.Node]:
    """The summands of a branch, each computed from the skip through a projection."""
    bare = facts.strip(branch)
    if facts.op[bare] == "add" and bare not in skips:
        parts = [a for a in bare.args[:2] if isinstance(a, fx.Node)]
        if (
            len(parts) == 2
            and all(projected(facts, skip, p) for p in parts)
            and not through(facts, skip, *parts)
            and not through(facts, skip, *parts[::-1])
        ):
            return [t for p in parts for t in terms(facts, p, skip, skips)]
    return [branch]


def through(facts: Facts, skip: fx.Node, a: fx.Node, b: fx.Node) -> bool:
    """Whether all that `b` has of `skip` comes through `a`: a step of one branch, as a convolution.

    What also reads the skip itself, as a feed-forward that reads skip + a does, is a branch.
    """
    if not facts.is_ancestor(a, b):
        return False
    waiting, seen = [b], {a}
    while waiting:
        node = waiting.pop()
        if node is skip:
            return False
        if node not in seen and facts.is_ancestor(skip, node):
            seen.add(node)
            waiting += node.all_input_nodes
    return True
