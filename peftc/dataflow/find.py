"""Program -> Sites: the roles of a transformer's values, by dataflow alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from peftc.capture.normalise import module_of
from peftc.capture.program import Program, input_name
from peftc.dataflow.attention import Core, cores
from peftc.dataflow.embeddings import embeddings
from peftc.dataflow.facts import Facts, Projection, feature_width
from peftc.dataflow.fused import part_of
from peftc.dataflow.heads import attention_at, has_heads
from peftc.dataflow.makers import made_of
from peftc.dataflow.mixing import mixes
from peftc.dataflow.naming import distinct, numbered, numbered_path
from peftc.dataflow.parameters import parameters
from peftc.dataflow.positions import positions
from peftc.dataflow.residual import Residual, around, residuals
from peftc.dataflow.site import Attention, Site, Sites

NONLINEAR = frozenset(
    [
        "gelu",
        "relu",
        "silu",
        "sigmoid",
        "tanh",
        "erf",
        "softplus",
        "leaky_relu",
        "mish",
        "hardswish",
        "hardtanh",
        "elu",
        "relu6",
        "hardsigmoid",
        "glu",
        "pow",
        "square",
        "exp",
        "clamp",
        "log_sigmoid",
        "celu",
        "prelu",
        "where",
    ]
)


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


def find_sites(program: Program) -> Sites:
    """The sites of every attention, feed-forward block, embedding and residual stream."""
    return Finder(program).find()


class Finder:
    """One analysis of one Program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.facts = Facts(program)
        found = residuals(self.facts)
        self.around = around(self.facts, found)
        self.residuals = [r for r in found if r not in self.around]
        self.cores = [c for c in cores(self.facts) if self.queried(c) and has_heads(c)]
        given = [n for n in self.facts.nodes if (input_name(n) or "").startswith("decoder_")]
        self.two_stacks = bool(given)
        self.decoder_inputs = self.facts.mask(given)

    def find(self) -> Sites:
        """Find everything."""
        blocks = self.blocks()
        sites: list[Site] = []
        attentions: list[Attention] = []
        layers: dict[str, int] = {}
        first: dict[str, fx.Node] = {}
        ends: dict[str, fx.Node] = {}
        used = {p.node for b in blocks if b.core for p in self.inputs_of(b)}
        begun: dict[str, tuple[str, bool]] = {}  # by stack: where, and whether by a mixer
        bare = not any(b.core or mixes(self.facts, b.term, b.region) for b in blocks)
        for block in blocks:
            stack = self.stack_of(block.residual.add)
            first.setdefault(stack, block.residual.skip)
            if block.core is not None:
                cross = self.is_cross(block)
                place = (numbered_path(module_of(block.core.node)), False)
                if not cross and begun.get(stack) != (place[0], True):
                    layers[stack] = layers.get(stack, 0) + 1
                if not cross:
                    begun[stack] = place
                layer = max(layers.get(stack, 0) - 1, 0)
                found, own = self.attention(block, stack, layer, cross)
                attentions += own
                sites += found
            elif mixes(self.facts, block.term, block.region):
                place = numbered_path(module_of(block.term))
                beside = any(b.core for b in blocks if b.residual is block.residual)
                if not beside and begun.get(stack, ("", False))[0] != (place or None):
                    layers[stack] = layers.get(stack, 0) + 1
                    begun[stack] = (place, True)
                outputs = self.facts.frontier(block.term, block.region)
                sites.append(
                    self.branch(
                        "mixer.out", max(layers.get(stack, 0) - 1, 0), stack, block, outputs, None
                    )
                )
            else:
                # Where nothing that mixes tokens has weights, each feed-forward is a layer.
                layer = layers.get(stack, 0) if bare else max(layers.get(stack, 0) - 1, 0)
                found = self.feed_forward(block, stack, layer, used)
                sites += found
                if not found:
                    continue
                if bare:
                    layers[stack] = layer + 1
            ends[stack] = block.residual.add
        for residual in self.around:
            stack = self.stack_of(residual.add)
            if stack in ends and self.facts.is_ancestor(ends[stack], residual.add):
                ends[stack] = residual.add
        sites += self.block_outputs(blocks, sites, ends)
        tokens = embeddings(self.facts, self.stack_of)
        order = self.facts.index
        sites.sort(key=lambda s: order[s.h])
        sites = numbered(distinct(sites))
        return Sites(
            program=self.program,
            sites=tuple([e.site for e in tokens] + sites),
            attentions=tuple(numbered(attentions)),
            positions=tuple(positions(self.facts, self.counting_stack, first)),
            embeddings=tuple(tokens),
            layers=layers,
            ends=ends,
            parameters=parameters(self.facts, list(ends.values())),
        )

    def stack_of(self, node: fx.Node) -> str:
        """The stack whose stream `node` is on."""
        if not self.two_stacks:
            return ""
        return "decoder" if self.facts.ancestors[node] & self.decoder_inputs else "encoder"

    def counting_stack(self, node: fx.Node) -> str:
        """The stack whose tokens `node` counts: it may know their number and read none of them."""
        if not self.two_stacks:
            return ""
        given = self.facts.of(self.decoder_inputs)
        lengths = {str(s) for n in given for s in n.meta["val"].shape[1:2]}
        counted = {str(s) for s in node.meta["val"].shape if not str(s).isdigit()}
        return "decoder" if counted & lengths else self.stack_of(node)

    def blocks(self) -> list[Block]:
        """Residual branches in order, each core in the smallest branch that holds it."""
        claimed: set[fx.Node] = set()
        found = []
        for residual in self.residuals:
            terms = residual.terms
            if not any(self.holds_core(residual, t) for t in terms):
                terms = (residual.branch,)  # experts and shared experts are one feed-forward
            for term in terms:
                region = self.facts.between(residual.skip, term)
                inside = [
                    c
                    for c in self.cores
                    if c.out not in claimed and region >> self.facts.index[c.out] & 1
                ]
                claimed.update(c.out for c in inside)
                found.append(Block(residual, term, region, self.alike(inside)))
        return found

    def alike(self, inside: list[Core]) -> tuple[Core, ...]:
        """The last core of a branch and those that read keys and values of the same projections."""
        made_by = [
            tuple(p.node for n in (c.k, c.v) for p in self.facts.frontier(n)) for c in inside
        ]
        return tuple(c for c, made in zip(inside, made_by, strict=True) if made == made_by[-1])

    def holds_core(self, residual: Residual, term: fx.Node) -> bool:
        """Whether a branch holds an attention core."""
        region = self.facts.between(residual.skip, term)
        return any(region >> self.facts.index[c.out] & 1 for c in self.cores)

    def queried(self, core: Core) -> bool:
        """Whether something projects the queries: tokens', or learned ones as in a Perceiver.

        A parameter that alone weighs the states of several layers asks for no tokens.
        """
        linears = ("linear", "addmm", "mm", "matmul", "bmm")
        made_by = self.facts.of(self.facts.ancestors[core.q])
        return any(self.facts.op[n] in linears or n in self.facts.projections for n in made_by)

    def is_cross(self, block: Block) -> bool:
        """Whether keys come from another stream than the block's own."""
        core = block.core
        keys = self.facts.frontier(core.k)  # type: ignore[union-attr]
        return bool(keys) and not any(
            self.facts.is_ancestor(block.residual.skip, p.x) for p in keys
        )

    def inputs_of(self, block: Block) -> list[Projection]:
        """The projections that make a core's queries, keys and values."""
        core = block.core
        found = {p.node: p for n in (core.q, core.k, core.v) for p in self.facts.frontier(n)}  # type: ignore[union-attr]
        return list(found.values())

    def attention(
        self, block: Block, stack: str, layer: int, cross: bool
    ) -> tuple[list[Site], list[Attention]]:
        """The sites of one attention block."""
        core, facts = block.core, self.facts
        group = "cross" if cross else "attn"
        found = []
        for each in block.cores:
            q, k, v = made_of(facts, each)
            for letter, consumer, made_by in (("q", each.q, q), ("k", each.k, k), ("v", each.v, v)):
                found += [
                    self.projected(f"{group}.{letter}", layer, stack, p, consumer) for p in made_by
                ]
        outputs = facts.frontier(block.term, block.region)
        outputs = [p for p in outputs if facts.is_ancestor(core.out, p.x)] or outputs  # type: ignore[union-attr]
        if outputs:
            o = outputs[-1]
            found.append(
                Site(
                    f"{group}.heads", layer, stack, module_of(o.x), o.x, o.in_width,
                    readers=(o.reader,),
                )
            )  # fmt: skip
        queries = [s for s in found if s.role.endswith(".q")]
        x = queries[0].x if queries else None
        found.append(self.branch(f"{group}.out", layer, stack, block, outputs, x))
        return found, [
            attention_at(self.facts, c, f"{group}.kv", layer, stack) for c in block.cores
        ]

    def feed_forward(self, block: Block, stack: str, layer: int, used: set[fx.Node]) -> list[Site]:
        """The sites of one feed-forward block; none where the branch is something else."""
        facts = self.facts
        downs = facts.frontier(block.term, block.region)
        if not downs or any(d.node in used for d in downs):
            return []
        experts = [d for d in downs if d.routed]
        whole = [d for d in downs if d.width == feature_width(block.term)]
        down = (experts or whole or downs)[-1]  # routers and gates beside it are narrow
        ups = [p for p in facts.frontier(down.x, block.region) if p.node not in used]
        if not ups:
            return []
        path = 0
        for up in ups:
            path |= facts.between(up.h, down.x) | 1 << facts.index[down.x]
        if not any(facts.op[n] in NONLINEAR for n in facts.of(path)):
            return []
        x = self.sublayer_input(block, ups[0])
        slices = any(d is not down and d.weight == down.weight for d in downs)
        if slices or any(p.routed for p in (*ups, *downs)):
            # What experts make belongs to single tokens: the block as a whole is one site.
            return [self.branch("ffn.out", layer, stack, block, [], x)]
        found = []
        for up in ups:
            gated = len(ups) > 1 and self.through_activation(up, down)
            role = "ffn.gate" if gated else "ffn.up"
            found.append(self.projected(role, layer, stack, up, down.x))
        found.append(
            Site(
                "ffn.act", layer, stack, module_of(down.x), down.x, down.in_width,
                readers=(down.reader,),
            )
        )  # fmt: skip
        found.append(self.projected("ffn.down", layer, stack, down, down.h))
        found.append(self.branch("ffn.out", layer, stack, block, [down], x))
        return found

    def sublayer_input(self, block: Block, first: Projection) -> fx.Node:
        """What a block reads, in the stream's own shape: before experts flatten and repeat it."""
        shape = block.term.meta["val"].dim()
        inside = self.facts.ancestors[first.x] & self.facts.descendants[block.residual.skip]
        for node in reversed(self.facts.of(inside)):
            value = node.meta["val"]
            if feature_width(node) == feature_width(block.term) and value.dim() == shape:
                return node
        return block.residual.stream

    def through_activation(self, up: Projection, down: Projection) -> bool:
        """Whether what `up` makes goes through a nonlinearity before the product with the rest."""
        node = up.h
        while True:
            users = [u for u in node.users if self.facts.is_ancestor(u, down.x)]
            if any(self.facts.op[u] in NONLINEAR for u in users):
                return True
            if len(users) != 1 or not self.facts.is_unary(users[0]):
                return False
            node = users[0]

    def projected(
        self, role: str, layer: int, stack: str, projection: Projection, consumer: fx.Node
    ) -> Site:
        """The site of a projection's value, or of the part of it that reaches `consumer`."""
        h, rows = part_of(self.facts, projection, consumer)
        weight = projection.weight_at(rows)
        return Site(
            role,
            layer,
            stack,
            module_of(projection.node),
            h,
            len(rows),
            projection.x,
            projection.in_width,
            readers=tuple(h.users),
            weight=weight,
        )

    def branch(
        self, role: str, layer: int, stack: str, block: Block,
        outputs: list[Projection], x: fx.Node | None,
    ) -> Site:  # fmt: skip
        """The value with which a block joins the residual stream."""
        term = block.term
        # The projection's module, where nothing but casts and dropouts stands behind it.
        made_by = outputs[-1] if outputs else None
        direct = made_by is not None and self.facts.strip(term) in (made_by.h, made_by.node)
        module = module_of(made_by.node) if direct and made_by else module_of(term)
        return Site(
            role,
            layer,
            stack,
            module,
            term,
            feature_width(term) or 0,
            x,
            feature_width(x) if x is not None else None,
            stream=block.residual.stream,
            readers=block.residual.readers(term, self.facts),
        )

    def block_outputs(
        self, blocks: list[Block], sites: list[Site], ends: dict[str, fx.Node]
    ) -> list[Site]:
        """The stream after each layer: what the next layer's first branch starts from."""
        starts: dict[tuple[str, int], fx.Node] = {}
        for site in sites:
            if site.stream is not None and site.layer is not None:
                starts.setdefault((site.stack, site.layer), site.stream)
        found = []
        for (stack, layer), _ in starts.items():
            after = starts.get((stack, layer + 1))
            if after is None:
                after = self.last_value(stack, ends[stack], blocks)
            readers = tuple(u for u in after.users if self.facts.is_tensor(u))
            width = feature_width(after) or 0
            found.append(
                Site("block.out", layer, stack, module_of(after), after, width, readers=readers)
            )
        return found

    def last_value(self, stack: str, end: fx.Node, blocks: list[Block]) -> fx.Node:
        """The stack's last value: the last sum, or the norm after it in post-norm blocks."""
        sums = {b.residual.add for b in blocks}
        skips = {b.residual.skip for b in blocks if self.stack_of(b.residual.add) == stack}
        before = [s for s in skips if s not in sums and any(a in sums for a in s.all_input_nodes)]
        readers = list(end.users)
        if before and len(readers) == 1 and self.facts.op[readers[0]] == self.facts.op[before[0]]:
            return readers[0]
        return end
