"""The sites of one block: what its projections make, and the value that joins the stream."""

from __future__ import annotations

from torch import fx

from peftc.capture.walk import module_of
from peftc.dataflow.blocks import Block
from peftc.dataflow.facts import Facts
from peftc.dataflow.fused import part_of
from peftc.dataflow.heads import attention_at
from peftc.dataflow.makers import made_of
from peftc.dataflow.operations import feature_width
from peftc.dataflow.projection import Projection
from peftc.dataflow.site import Attention, Site

NONLINEAR = frozenset([
    "gelu", "relu", "silu", "sigmoid", "tanh", "erf", "softplus", "leaky_relu", "mish",
    "hardswish", "hardtanh", "elu", "relu6", "hardsigmoid", "glu", "pow", "square", "exp",
    "clamp", "log_sigmoid", "celu", "prelu", "where",
])  # fmt: skip


def attention_sites(
    facts: Facts, block: Block, stack: str, layer: int, cross: bool
) -> tuple[list[Site], list[Attention]]:
    """The sites of one attention block."""
    core = block.core
    group = "cross" if cross else "attn"
    found = []
    for each in block.cores:
        q, k, v = made_of(facts, each)
        for letter, consumer, made_by in (("q", each.q, q), ("k", each.k, k), ("v", each.v, v)):
            found += [
                projected_site(facts, f"{group}.{letter}", layer, stack, p, consumer)
                for p in made_by
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
    found.append(branch_site(facts, f"{group}.out", layer, stack, block, outputs, x))
    return found, [attention_at(facts, c, f"{group}.kv", layer, stack) for c in block.cores]


def feed_forward_sites(
    facts: Facts, block: Block, stack: str, layer: int, used: set[fx.Node]
) -> list[Site]:
    """The sites of one feed-forward block; none where the branch is something else."""
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
    x = sublayer_input(facts, block, ups[0])
    slices = any(d is not down and d.weight == down.weight for d in downs)
    if slices or any(p.routed for p in (*ups, *downs)):
        # What experts make belongs to single tokens: the block as a whole is one site.
        return [branch_site(facts, "ffn.out", layer, stack, block, [], x)]
    found = []
    for up in ups:
        gated = len(ups) > 1 and through_activation(facts, up, down)
        role = "ffn.gate" if gated else "ffn.up"
        found.append(projected_site(facts, role, layer, stack, up, down.x))
    found.append(
        Site(
            "ffn.act", layer, stack, module_of(down.x), down.x, down.in_width,
            readers=(down.reader,),
        )
    )  # fmt: skip
    found.append(projected_site(facts, "ffn.down", layer, stack, down, down.h))
    found.append(branch_site(facts, "ffn.out", layer, stack, block, [down], x))
    return found


def sublayer_input(facts: Facts, block: Block, first: Projection) -> fx.Node:
    """What a block reads, in the stream's own shape: before experts flatten and repeat it."""
    shape = block.term.meta["val"].dim()
    inside = facts.ancestors[first.x] & facts.descendants[block.residual.skip]
    for node in reversed(facts.of(inside)):
        value = node.meta["val"]
        if feature_width(node) == feature_width(block.term) and value.dim() == shape:
            return node
    return block.residual.stream


def through_activation(facts: Facts, up: Projection, down: Projection) -> bool:
    """Whether what `up` makes goes through a nonlinearity before the product with the rest."""
    node = up.h
    while True:
        users = [u for u in node.users if facts.is_ancestor(u, down.x)]
        if any(facts.op[u] in NONLINEAR for u in users):
            return True
        if len(users) != 1 or not facts.is_unary(users[0]):
            return False
        node = users[0]


def projected_site(
    facts: Facts, role: str, layer: int, stack: str, projection: Projection, consumer: fx.Node
) -> Site:
    """The site of a projection's value, or of the part of it that reaches `consumer`."""
    h, rows = part_of(facts, projection, consumer)
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


def branch_site(
    facts: Facts, role: str, layer: int, stack: str, block: Block,
    outputs: list[Projection], x: fx.Node | None,
) -> Site:  # fmt: skip
    """The value with which a block joins the residual stream."""
    term = block.term
    # The projection's module, where nothing but casts and dropouts stands behind it.
    made_by = outputs[-1] if outputs else None
    direct = made_by is not None and facts.strip(term) in (made_by.h, made_by.node)
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
        readers=block.residual.readers(term, facts),
    )
