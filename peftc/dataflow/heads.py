"""The heads of an attention core, counted from shapes and from what makes its values."""

from __future__ import annotations

from peftc.capture.walk import module_of
from peftc.dataflow.attention import Core
from peftc.dataflow.facts import Facts
from peftc.dataflow.fused import part_of, size_of_one, tiled
from peftc.dataflow.site import Attention


def attention_at(facts: Facts, core: Core, role: str, layer: int, stack: str) -> Attention:
    """An attention core with its head counts."""
    keys = core.k.meta["val"]
    heads, head_dim = keys.shape[-3], keys.shape[-1]
    if keys.dim() == 3:  # (batch * heads, ...)
        heads = size_of_one(keys.shape[0])
    value_dim = core.v.meta["val"].shape[-1]
    if core.scores is not None:  # the written-out product may read k already transposed
        head_dim = core.q.meta["val"].shape[-1]
    made_by = facts.frontier(core.v)
    width = sum({p.weight: len(part_of(facts, p, core.v)[1]) for p in made_by}.values())
    kv_heads = heads
    if isinstance(value_dim, int) and width and isinstance(heads, int):
        kv_heads = next(
            (n for n in (width // value_dim,) if n and heads % n == 0 and n <= heads), heads
        )
    in_turn = kv_heads < heads and tiled(facts, made_by[-1], core.v, value_dim)
    return Attention(
        role, layer, stack, module_of(core.node), core.node, core.q, core.k, core.v, core.mask,
        heads, kv_heads, head_dim, value_dim, core.scores,
        core.out if core.scores is not None else None, tiled=in_turn,
    )  # fmt: skip


def has_heads(core: Core) -> bool:
    """Whether keys are (batch, heads, tokens, features) or flatter: not by blocks of tokens."""
    keys = core.k.meta["val"]
    return keys.dim() < 5 or isinstance(keys.shape[-3], int)
