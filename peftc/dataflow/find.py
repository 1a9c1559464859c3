"""Program -> Sites: the roles of a transformer's values, by dataflow alone."""

from __future__ import annotations

from torch import fx

from peftc.capture.program import Program
from peftc.capture.walk import module_of
from peftc.dataflow.block_sites import attention_sites, branch_site, feed_forward_sites
from peftc.dataflow.blocks import Block, blocks_of, inputs_of, is_cross
from peftc.dataflow.embeddings import embeddings
from peftc.dataflow.facts import Facts
from peftc.dataflow.layers import Layers
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


class Finder:
    """One analysis of one Program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.facts = Facts(program)
        self.stacks = Stacks(self.facts)
        found = residuals(self.facts)
        self.around = around(self.facts, found)
        self.blocks = blocks_of(self.facts, [r for r in found if r not in self.around])
        self.layers = Layers()
        self.sites: list[Site] = []
        self.attentions: list[Attention] = []
        self.used = {p.node for b in self.blocks if b.core for p in inputs_of(self.facts, b)}
        # Where nothing that mixes tokens has weights, each feed-forward is a layer.
        self.bare = not any(b.core or mixes(self.facts, b.term, b.region) for b in self.blocks)

    def find(self) -> Sites:
        """Find everything."""
        first: dict[str, fx.Node] = {}
        ends: dict[str, fx.Node] = {}
        for block in self.blocks:
            stack = self.stacks.of(block.residual.add)
            first.setdefault(stack, block.residual.skip)
            if self.found_in(block, stack):
                ends[stack] = block.residual.add
        for residual in self.around:
            stack = self.stacks.of(residual.add)
            if stack in ends and self.facts.is_ancestor(ends[stack], residual.add):
                ends[stack] = residual.add
        self.sites += self.block_outputs(ends)
        tokens = embeddings(self.facts, self.stacks.of)
        order = self.facts.index
        sites = numbered(distinct(sorted(self.sites, key=lambda s: order[s.h])))
        return Sites(
            program=self.program,
            sites=tuple([e.site for e in tokens] + sites),
            attentions=tuple(numbered(self.attentions)),
            positions=tuple(positions(self.facts, self.stacks.counting, first)),
            embeddings=tuple(tokens),
            layers=self.layers.counts,
            ends=ends,
            parameters=parameters(self.facts, list(ends.values())),
        )

    def found_in(self, block: Block, stack: str) -> bool:
        """Find the sites of one block; whether it has any."""
        facts, layers = self.facts, self.layers
        if block.core is not None:
            cross = is_cross(facts, block)
            if not cross:
                layers.attention(stack, numbered_path(module_of(block.core.node)))
            found, own = attention_sites(facts, block, stack, layers.now(stack), cross)
            self.attentions += own
        elif mixes(facts, block.term, block.region):
            if not any(b.core for b in self.blocks if b.residual is block.residual):
                layers.mixer(stack, numbered_path(module_of(block.term)))
            outputs = facts.frontier(block.term, block.region)
            layer = layers.now(stack)
            found = [branch_site(facts, "mixer.out", layer, stack, block, outputs, None)]
        else:
            layer = layers.counts.get(stack, 0) if self.bare else layers.now(stack)
            found = feed_forward_sites(facts, block, stack, layer, self.used)
            if found and self.bare:
                layers.begin(stack)
        self.sites += found
        return bool(found)

    def block_outputs(self, ends: dict[str, fx.Node]) -> list[Site]:
        """The stream after each layer: what the next layer's first branch starts from."""
        starts: dict[tuple[str, int], fx.Node] = {}
        for site in self.sites:
            if site.stream is not None and site.layer is not None:
                starts.setdefault((site.stack, site.layer), site.stream)
        found = []
        for stack, layer in starts:
            after = starts.get((stack, layer + 1))
            if after is None:
                after = self.last_value(stack, ends[stack])
            readers = tuple(u for u in after.users if self.facts.is_tensor(u))
            width = feature_width(after) or 0
            found.append(
                Site("block.out", layer, stack, module_of(after), after, width, readers=readers)
            )
        return found

    def last_value(self, stack: str, end: fx.Node) -> fx.Node:
        """The stack's last value: the last sum, or the norm after it in post-norm blocks."""
        sums = {b.residual.add for b in self.blocks}
        skips = {b.residual.skip for b in self.blocks if self.stacks.of(b.residual.add) == stack}
        before = [s for s in skips if s not in sums and any(a in sums for a in s.all_input_nodes)]
        readers = list(end.users)
        if before and len(readers) == 1 and self.facts.op[readers[0]] == self.facts.op[before[0]]:
            return readers[0]
        return end
