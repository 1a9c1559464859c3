"""Blocks: the branches of a residual stream, each with the attention cores that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from peftc.dataflow.attention import Core, cores
from peftc.dataflow.facts import Facts
from peftc.dataflow.heads import has_heads
from peftc.dataflow.projection import Projection
from peftc.dataflow.residual import Residual


@dataclass(frozen=True)
class Block:
    """A residual branch: attention with its cores, or feed-forward without."""

    residual: Residual
    term: fx.Node
    region: int  # the nodes from the skip to the term
    cores: tuple[Core, ...]

    @property
    def core(self) -> Core | None:
        """The last attention core, or None."""
        return self.cores[-1] if self.cores else None


def blocks_of(facts: Facts, found: Sequence[Residual]) -> list[Block]:
    """Residual branches in order, each core in the smallest branch that holds it."""
    claimed: set[fx.Node] = set()
    attending = [c for c in cores(facts) if queried(facts, c) and has_heads(c)]
    made = []
    for residual in found:
        terms = residual.terms
        if not any(holds_core(facts, residual, t, attending) for t in terms):
            terms = (residual.branch,)  # experts and shared experts are one feed-forward
        for term in terms:
            region = facts.between(residual.skip, term)
            inside = [
                c for c in attending if c.out not in claimed and region >> facts.index[c.out] & 1
            ]
            claimed.update(c.out for c in inside)
            made.append(Block(residual, term, region, alike(facts, inside)))
    return made


def alike(facts: Facts, inside: list[Core]) -> tuple[Core, ...]:
    """The last core of a branch and those that read keys and values of the same projections."""
    made_by = [tuple(p.node for n in (c.k, c.v) for p in facts.frontier(n)) for c in inside]
    return tuple(c for c, made in zip(inside, made_by, strict=True) if made == made_by[-1])


def holds_core(facts: Facts, residual: Residual, term: fx.Node, attending: list[Core]) -> bool:
    """Whether a branch holds an attention core."""
    region = facts.between(residual.skip, term)
    return any(region >> facts.index[c.out] & 1 for c in attending)


def queried(facts: Facts, core: Core) -> bool:
    """Whether something projects the queries: tokens', or learned ones as in a Perceiver.

    A parameter that alone weighs the states of several layers asks for no tokens.
    """
    linears = ("linear", "addmm", "mm", "matmul", "bmm")
    made_by = facts.of(facts.ancestors[core.q])
    return any(facts.op[n] in linears or n in facts.projections for n in made_by)


def is_cross(facts: Facts, block: Block) -> bool:
    """Whether keys come from another stream than the block's own."""
    core = block.core
    keys = facts.frontier(core.k)  # type: ignore[union-attr]
    return bool(keys) and not any(facts.is_ancestor(block.residual.skip, p.x) for p in keys)


def inputs_of(facts: Facts, block: Block) -> list[Projection]:
    """The projections that make a core's queries, keys and values."""
    core = block.core
    found = {p.node: p for n in (core.q, core.k, core.v) for p in facts.frontier(n)}  # type: ignore[union-attr]
    return list(found.values())
