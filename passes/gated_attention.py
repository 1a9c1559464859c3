"""sdpa(q, k, v)  ->  sdpa(q, [g P_k; k], [g P_v; v]), each query with its own g."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.capture.values import set_value
from peftc.dataflow.site import Attention
from peftc.passes.base import after, call

aten = torch.ops.aten
ALIGNED = 8  # a GPU's fused kernels read so many halves at a time, and refuse other widths


@dataclass
class GatedAttention:
    """Lets each query see g P_k and g P_v, with a g of its own, in one kernel.

    %o = sdpa(%q, %k, %v)
      ->  %o = sdpa([%q, g %q A_k^T], [[0, B_k]; [%k, 0]], [[0, B_v]; [%v, 0]])
          %o[v] + g %o[P_v] A_v

    with P = B A. The kernel becomes wider by the width of B: by the number of tokens with B = 1,
    A = P, or where the prefix is narrower than that by its own width with B = P, A = 1.
    """

    identities: dict[tuple[Any, ...], fx.Node] = field(default_factory=dict)

    def attend(
        self,
        program: Program,
        attention: Attention,
        key: fx.Node,
        value: fx.Node,
        valve: Callable[[fx.Node], fx.Node],
    ) -> None:
        """Rewrite one attention: key, value are P_k, P_v, (1 or batch, heads, tokens, dim)."""
        node, path = attention.node, attention.module
        q, k, v, *rest = node.args
        if node.kwargs.get("scale") is None:
            node.kwargs = {**node.kwargs, "scale": attention.head_dim**-0.5}
        with program.graph.inserting_before(node):
            block, factor = self.factors(program, key, attention)
            keys = joined(program, block, k, attention)  # type: ignore[arg-type]
            gated: fx.Node = q  # type: ignore[assignment]
            if factor is not None:
                turned = call(program, aten.transpose.int, (factor, 2, 3), path)
                gated = call(program, aten.matmul.default, (q, turned), path)
            block, factor = self.factors(program, value, attention)
            values = joined(program, block, v, attention)  # type: ignore[arg-type]
        gated = valve(gated)
        with program.graph.inserting_before(node):
            queries = call(program, aten.cat.default, ([q, gated], -1), path)
        node.args = (queries, keys, values, *rest)
        set_value(program, node)
        users, width, end = list(node.users), attention.value_dim, node.meta["val"].shape[-1]
        with after(node):
            own = call(program, aten.slice.Tensor, (node, -1, 0, width), path)
            seen = call(program, aten.slice.Tensor, (node, -1, width, end), path)
        seen = valve(seen)
        with after(own, seen):
            if factor is not None:
                seen = call(program, aten.matmul.default, (seen, factor), path)
            total = call(program, aten.add.Tensor, (own, seen), path)
        for user in users:
            user.replace_input_with(node, total)

    def factors(
        self, program: Program, prefix: fx.Node, attention: Attention
    ) -> tuple[fx.Node, fx.Node | None]:
        """([0, B], A) with P = B A; A is none for 1, and has zeros behind for an aligned width.

        A is repeated where the kernel lets several query heads read one of k.
        """
        path, given = attention.module, prefix.meta["val"]
        tokens, width = given.shape[2:]
        step = math.gcd(width, ALIGNED)
        narrow = math.ceil(tokens / step) * step
        if narrow >= width:
            pad = [width, 0]
            return call(program, aten.constant_pad_nd.default, (prefix, pad, 0.0), path), None
        block = self.identity(program, tokens, narrow, given)
        if narrow > tokens:
            pad = [0, 0, 0, narrow - tokens]
            prefix = call(program, aten.constant_pad_nd.default, (prefix, pad, 0.0), path)
        if attention.node.kwargs.get("enable_gqa"):
            repeats = attention.q.meta["val"].shape[1] // given.shape[1]
            prefix = call(program, aten.repeat_interleave.self_int, (prefix, repeats, 1), path)
        return block, prefix

    def identity(self, program: Program, tokens: int, narrow: int, like: torch.Tensor) -> fx.Node:
        """[0, 1]: (tokens, width + narrow), made once for all attentions."""
        width = like.shape[-1]
        key = (tokens, narrow, width, like.dtype, like.device)
        if key not in self.identities:
            first = next(n for n in program.graph.nodes if n.op not in ("placeholder", "get_attr"))
            with program.graph.inserting_before(first):
                one = call(
                    program, aten.eye.m, (tokens, narrow), "", dtype=like.dtype, device=like.device
                )
                padded = call(program, aten.constant_pad_nd.default, (one, [width, 0], 0.0), "")
            self.identities[key] = padded
        return self.identities[key]


def joined(program: Program, block: fx.Node, others: fx.Node, attention: Attention) -> fx.Node:
    """([0, B], k)  ->  [[0, B]; [k, 0]]: the prefix in features of its own, in every row."""
    path = attention.module
    extra = block.meta["val"].shape[-1] - others.meta["val"].shape[-1]
    batch = call(program, aten.sym_size.int, (others, 0), path)
    before = call(program, aten.expand.default, (block, [batch, attention.heads, -1, -1]), path)
    behind = call(program, aten.constant_pad_nd.default, (others, [0, extra], 0.0), path)
    return call(program, aten.cat.default, ([before, behind], 2), path)
