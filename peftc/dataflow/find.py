"""Program -> Sites: the roles of a transformer's values, by dataflow alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from peftc.capture.program import Program
from peftc.capture.walk import module_of
from peftc.dataflow.block_sites import attention_sites, branch_site, feed_forward_sites
from peftc.dataflow.blocks import Block, blocks_of, inputs_of, is_cross
from peftc.dataflow.embeddings import embeddings, entry, sensed
from peftc.dataflow.facts import Facts
from peftc.dataflow.layers import Step, layers_of
from peftc.dataflow.mixing import mixes
from peftc.dataflow.naming import distinct, numbered, numbered_path
from peftc.dataflow.operations import feature_width
from peftc.dataflow.parameters import parameters
from peftc.dataflow.positions import positions
from peftc.dataflow.residual import around, residuals
from peftc.dataflow.site import Attention, Site, Sites
from peftc.dataflow.stacks import Stacks


def find_sites(program: Program) -> Sites:
    """The sites of every attention, feed-forward block, embedding and residual stream."""
    return Finder(program).find()


@dataclass(frozen=True)
class Found:
    """The sites of one block, not yet numbered; none of a block of another kind."""

    block: Block
    stack: str
    kind: str
    sites: list[Site]
    attentions: list[Attention]


class Finder:
    """One analysis of one Program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.facts = Facts(program)
        self.stacks = Stacks(self.facts)
        found = residuals(self.facts)
        self.around = around(self.facts, found)
        self.blocks = blocks_of(self.facts, [r for r in found if r not in self.around])
        self.used = {p.node for b in self.blocks if b.core for p in inputs_of(self.facts, b)}

    def find(self) -> Sites:
        """Find everything."""
        first: dict[str, fx.Node] = {}
        start: dict[str, fx.Node] = {}
        found: list[Found] = []
        for block in self.blocks:
            stack = self.stacks.of(block.residual.add)
            first.setdefault(stack, block.residual.skip)
            start.setdefault(stack, block.residual.stream)
            found.append(self.found_in(block, stack))
        sites: list[Site] = []
        attentions: list[Attention] = []
        layers: dict[str, int] = {}
        starts: dict[tuple[str, int], fx.Node] = {}
        last: dict[str, fx.Node] = {}
        for one, layer in zip(found, self.numbered(found), strict=True):
            starts.setdefault((one.stack, layer), one.block.residual.stream)
            if not one.sites:
                continue
            last[one.stack] = one.block.residual.add
            sites += [replace(s, layer=layer) for s in one.sites]
            attentions += [replace(a, layer=layer) for a in one.attentions]
            layers[one.stack] = max(layers.get(one.stack, 0), layer + 1)
        for residual in self.around:
            stack = self.stacks.of(residual.add)
            if stack in last and self.facts.is_ancestor(last[stack], residual.add):
                last[stack] = residual.add
        sites += self.block_outputs(layers, starts, last)
        tokens = embeddings(self.facts, self.stacks.of)
        embedded = {e.site.stack for e in tokens}
        entries = [
            entry(self.facts, stack, start[stack])
            for stack in layers
            if stack not in embedded and sensed(self.facts, start[stack])
        ]
        order = self.facts.index
        sites = numbered(distinct(sorted(sites, key=lambda s: order[s.h])))
        return Sites(
            program=self.program,
            sites=tuple([*entries, *(e.site for e in tokens), *sites]),
            attentions=tuple(numbered(attentions)),
            positions=tuple(positions(self.facts, self.stacks.counting, first)),
            embeddings=tuple(tokens),
            layers=layers,
            ends=last,
            parameters=parameters(self.facts, list(last.values())),
        )

    def found_in(self, block: Block, stack: str) -> Found:
        """The sites of one block."""
        facts = self.facts
        if block.core is not None:
            cross = is_cross(facts, block)
            sites, attentions = attention_sites(facts, block, stack, 0, cross)
            return Found(block, stack, "cross" if cross else "attn", sites, attentions)
        if mixes(facts, block.term, block.region):
            outputs = facts.frontier(block.term, block.region)
            site = branch_site(facts, "mixer.out", 0, stack, block, outputs, None)
            return Found(block, stack, "mixer", [site], [])
        sites = feed_forward_sites(facts, block, stack, 0, self.used)
        return Found(block, stack, "ffn" if sites else "other", sites, [])

    def numbered(self, found: list[Found]) -> list[int]:
        """The layer of each block: those that start from one value of the stream share theirs."""
        steps: dict[tuple[str, fx.Node], list[Found]] = {}
        for one in found:
            steps.setdefault((one.stack, one.block.residual.skip), []).append(one)
        layers: dict[tuple[str, fx.Node], int] = {}
        for stack in dict.fromkeys(stack for stack, _ in steps):
            own = [key for key in steps if key[0] == stack]
            layers |= zip(own, layers_of([step_of(steps[key]) for key in own]), strict=True)
        return [layers[one.stack, one.block.residual.skip] for one in found]

    def block_outputs(
        self,
        layers: dict[str, int],
        starts: dict[tuple[str, int], fx.Node],
        last: dict[str, fx.Node],
    ) -> list[Site]:
        """The stream after each layer: what the next layer's first branch starts from."""
        found = []
        for stack, layer in [(s, k) for s, count in layers.items() for k in range(count)]:
            after = starts.get((stack, layer + 1)) if layer + 1 < layers[stack] else None
            after = self.leaving(after) if after else self.last_value(stack, last[stack])
            readers = tuple(u for u in after.users if self.facts.is_tensor(u))
            width = feature_width(after) or 0
            found.append(
                Site("block.out", layer, stack, module_of(after), after, width, readers=readers)
            )
        return found

    def leaving(self, after: fx.Node) -> fx.Node:
        """What a layer gives to all that reads it: `after`, where its last sum leads there alone.

        Where the next layer scales the stream that it adds to, or mixes tokens without weights,
        `after` is only a part of what the next layer reads, and the layer's own value is before it.
        """
        facts = self.facts
        sums = [b.residual.add for b in self.blocks] + [r.add for r in self.around]
        before = [n for n in sums if facts.is_ancestor(n, after)]
        if not before:
            return after
        end = max(before, key=facts.index.__getitem__)
        path = facts.between(end, after)
        adds = [n for n in facts.of(path) if facts.op[n] == "add"]
        joins = any(
            sum(facts.is_ancestor(end, a) for a in facts.active_inputs(n)) > 1 for n in adds
        )
        scaled = facts.strip(after) is facts.strip(end) and after is not end
        if not joins and not scaled:
            return after
        node = end
        while node is not after and len(node.users) == 1:
            node = next(iter(node.users))
        return node

    def last_value(self, stack: str, end: fx.Node) -> fx.Node:
        """The stack's last value: the last sum, or the norm after it in post-norm blocks."""
        sums = {b.residual.add for b in self.blocks}
        skips = {b.residual.skip for b in self.blocks if self.stacks.of(b.residual.add) == stack}
        before = [s for s in skips if s not in sums and any(a in sums for a in s.all_input_nodes)]
        readers = list(end.users)
        if before and len(readers) == 1 and self.facts.op[readers[0]] == self.facts.op[before[0]]:
            return readers[0]
        return end


def step_of(found: list[Found]) -> Step:
    """Blocks side by side as one step; its place is that of attention, or else of a mixer."""
    by_kind = {one.kind: one for one in reversed(found)}
    mixing = by_kind.get("attn") or by_kind.get("mixer")
    if mixing is None:
        return Step(tuple(one.kind for one in found))
    core = mixing.block.core
    node = mixing.block.term if core is None else core.node
    return Step(tuple(one.kind for one in found), numbered_path(module_of(node)))
