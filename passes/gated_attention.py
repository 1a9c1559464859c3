"""sdpa(q, [P_k; k], [P_v; v])  ->  the same with g P_k, g P_v, each query with its own g."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.capture.values import set_value
from peftc.dataflow.site import Attention
from peftc.passes.base import END, after, call

aten = torch.ops.aten


def split(
    program: Program, attention: Attention, tokens: int, valve: Callable[[fx.Node], fx.Node]
) -> None:
    """Let each query see g P_k and g P_v, with a g of its own, in one kernel.

    %o = sdpa(%q, [P_k; k], [P_v; v])
      ->  %o = sdpa([%q, g %q], [[0, P_k]; [k, 0]], [[0, P_v]; [v, 0]]);  %o[v] + g %o[P_v]
    """
    node, path = attention.node, attention.module
    q, k, v, *rest = node.args
    width, out_width = attention.head_dim, attention.value_dim
    gated = valve(q)  # type: ignore[arg-type]
    with program.graph.inserting_before(node):
        wide = call(program, aten.cat.default, ([q, gated], -1), path)
        keys = apart(program, k, tokens, width, path)  # type: ignore[arg-type]
        values = apart(program, v, tokens, out_width, path)  # type: ignore[arg-type]
    node.args = (wide, keys, values, *rest)
    if node.kwargs.get("scale") is None:
        node.kwargs = {**node.kwargs, "scale": width**-0.5}
    set_value(program, node)
    users = list(node.users)
    with after(node):
        own = call(program, aten.slice.Tensor, (node, -1, 0, out_width), path)
        seen = call(program, aten.slice.Tensor, (node, -1, out_width, 2 * out_width), path)
    seen = valve(seen)
    with after(own, seen):
        total = call(program, aten.add.Tensor, (own, seen), path)
    for user in users:
        user.replace_input_with(node, total)


def apart(program: Program, joined: fx.Node, tokens: int, width: int, path: str) -> fx.Node:
    """[P; k]  ->  [[0, P]; [k, 0]]: the prefix in features of its own."""
    prefix = call(program, aten.slice.Tensor, (joined, 2, 0, tokens), path)
    others = call(program, aten.slice.Tensor, (joined, 2, tokens, END), path)
    prefix = call(program, aten.constant_pad_nd.default, (prefix, [width, 0], 0.0), path)
    others = call(program, aten.constant_pad_nd.default, (others, [0, width], 0.0), path)
    return call(program, aten.cat.default, ([prefix, others], 2), path)
