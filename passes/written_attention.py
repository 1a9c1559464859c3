"""softmax(q k^T) v written out  ->  softmax([q P_k^T; q k^T]) [P_v; v], masks as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.capture.values import set_value
from peftc.capture.walk import ancestors
from peftc.dataflow.site import Attention
from peftc.passes.base import END, after, call, refuse
from peftc.passes.infix import Infix

aten = torch.ops.aten
# Steps between the scores and the softmax that a prefix's scores go through as well.
SCALING = {
    aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.tanh.default,
    aten._to_copy.default, aten.clamp.default,
}  # fmt: skip
# Steps that add a mask or a bias to the scores, put sinks behind them, or turn their layout:
# every query sees the prefix, with no bias.
MASKING = {
    aten.add.Tensor, aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor,
    aten.maximum.default, aten.max.other, aten.clone.default, aten.expand.default, aten.cat.default,
    aten.reshape.default, aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.dim,
}  # fmt: skip
# What else may read the scores beside the softmax: over all keys, the prefix's among them.
REDUCTIONS = {aten.logsumexp.default, aten.amax.default, aten.max.dim}


def attend_beside(
    program: Program,
    attention: Attention,
    key: fx.Node,
    value: fx.Node,
    valve: Callable[[fx.Node], fx.Node] | None = None,
    infix: Infix | None = None,
    hidden: Callable[[fx.Node], fx.Node] | None = None,
) -> None:
    """Give a written-out attention a prefix: key, value are (1 or batch, heads, tokens, dim).

    %s = matmul(%q, %k); ...; %p = softmax(%m); %o = matmul(%p, %v)
      ->  %ps = scaled matmul(%q, %key^T); %p = softmax(cat([%ps, %m]))
          %o = matmul(%p[tokens:], %v) + matmul(%p[:tokens], %value)

    `valve` puts what is (batch, heads, length, ...) behind a gate: both products with the prefix.
    `infix` hides the prefix from the queries before it, and `hidden` those of its tokens that a
    row does not have. Heads may be an axis of their own, (batch, ..., heads, length, keys), or
    flattened into the batch, (batch * heads, length, keys).

    Raises:
        PeftcError: E110 where the attention has another layout, or a step is unknown.
    """
    softmax, scores, output, path = (
        attention.node, attention.scores, attention.output, attention.module,
    )  # fmt: skip
    given = softmax.args[0]
    if not isinstance(given, fx.Node) or scores is None or output is None:
        raise unsupported(attention, "its softmax has no scores")
    ranks = {rank(n) for n in (attention.q, softmax, output, scores)}
    grouped = min(ranks) > 3 and attention.q.meta["val"].shape[-3] != attention.heads
    if not ranks <= {3, 4, 5} or grouped:
        raise unsupported(attention, "it does not keep (batch, heads, length, keys)")
    tokens: Any = key.meta["val"].shape[2]
    with after(given):
        if hidden is not None:  # a task that is selected later has fewer
            tokens = call(program, aten.sym_size.int, (key, 2), path)
        turned = call(program, aten.transpose.int, (key, 2, 3), path)
        q = by_heads(program, attention.q, attention)
        beside = call(program, aten.matmul.default, (q, turned), path)
        if (alpha := scores.kwargs.get("alpha", 1)) != 1:  # of baddbmm
            beside = call(program, aten.mul.Tensor, (beside, alpha), path)
    beside = beside if valve is None else valve(beside)
    with after(given, beside):
        line = steps(scores, given, attention)
        for step in line:
            beside = repeated(program, step, beside, attention)
        if infix is not None:
            beside = infix.hide_scores(program, beside, attention)
        if hidden is not None:
            beside = hidden(beside)
        beside = like(program, beside, given, attention, tokens)
        joined = call(program, aten.cat.default, ([beside, given], -1), path)
    readers = list(softmax.users)
    for reader in [n for n in given.users if n is not joined]:
        if reader not in (softmax, *line) and reader.target not in REDUCTIONS:
            raise unsupported(attention, f"`{reader.name}` reads its scores as well")
        reader.replace_input_with(given, joined)
        reader.meta["stale"] = True
    set_value(program, softmax)  # its parts are parts of what is longer now
    with after(softmax):
        # The prefix's part first: what follows sees the probabilities it always saw.
        mine = call(program, aten.slice.Tensor, (softmax, -1, 0, tokens), path)
        rest = call(program, aten.slice.Tensor, (softmax, -1, tokens, END), path)
    for reader in readers:
        reader.replace_input_with(softmax, rest)
    with program.graph.inserting_before(output):
        mine = through_dropout(program, mine, rest, output, path)
        dtype = value.meta["val"].dtype
        if mine.meta["val"].dtype != dtype:
            mine = call(program, aten._to_copy.default, (mine,), path, dtype=dtype)
        mine = by_heads(program, mine, attention, tokens)
        extra = call(program, aten.matmul.default, (mine, value), path)
    extra = extra if valve is None else valve(extra)
    with program.graph.inserting_before(output) if valve is None else after(extra):
        extra = like(program, extra, output, attention)
    users = list(output.users)
    with after(output):
        total = call(program, aten.add.Tensor, (output, extra), path)
    for user in users:
        user.replace_input_with(output, total)


def by_heads(program: Program, node: fx.Node, attention: Attention, n: Any = None) -> fx.Node:
    """(batch * heads, length, n)  ->  (batch, heads, length, n); others as they are."""
    if rank(node) > 3:
        return node
    length = call(program, aten.sym_size.int, (node, 1), attention.module)
    sizes = [-1, attention.heads, length, n or node.meta["val"].shape[-1]]
    return call(program, aten.reshape.default, (node, sizes), attention.module)


def like(
    program: Program, node: fx.Node, other: fx.Node, attention: Attention, n: Any = None
) -> fx.Node:
    """(batch, heads, length, n)  ->  (batch * heads, length, n) where `other` has three axes."""
    if rank(other) > 3:
        return node
    length = call(program, aten.sym_size.int, (node, 2), attention.module)
    sizes = [-1, length, n or node.meta["val"].shape[-1]]
    return call(program, aten.reshape.default, (node, sizes), attention.module)


def steps(scores: fx.Node, given: fx.Node, attention: Attention) -> list[fx.Node]:
    """The nodes from the scores to the softmax's input, in order, those on the scores' own line."""
    line: list[fx.Node] = []
    node = given
    while node is not scores:
        line.append(node)
        sources = [n for n in node.all_input_nodes if depends(n, scores) and has_keys(n)]
        if len(sources) != 1:
            raise unsupported(attention, f"`{node.name}` is not one step on its scores")
        node = sources[0]
    return line[::-1]


def has_keys(node: fx.Node) -> bool:
    """Whether the last axis of a tensor is longer than one."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and str(value.shape[-1]) != "1"


def depends(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node is computed from `source`."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        n = waiting.pop()
        if n is source:
            return True
        if n in seen or n < source:
            continue
        seen.add(n)
        waiting += n.all_input_nodes
    return False


def repeated(program: Program, step: fx.Node, beside: fx.Node, attention: Attention) -> fx.Node:
    """One step of the scores on the prefix's scores: scaling is repeated, masking left out."""
    others = [a for a in step.args[1:] if isinstance(a, fx.Node)]
    by_key = any(rank(n) and has_keys(n) for n in others)
    if step.target in MASKING or (by_key and not any(map(learned, others))):
        return beside
    if by_key:
        raise unsupported(attention, "its scores are multiplied with a value for each key")
    if step.target is aten.sub.Tensor and all(rank(n) > 3 for n in others):
        pass  # the largest score, or what else is the same for every key
    elif step.target not in SCALING:
        raise unsupported(attention, f"`{step.target}` is an unknown step on its scores")
    first = step.args[0]
    args = (beside, *step.args[1:]) if isinstance(first, fx.Node) else step.args
    return call(program, step.target, args, attention.module, **step.kwargs)


def learned(node: fx.Node) -> bool:
    """Whether a value is computed from floating parameters, so that it is no mask."""
    made_of = ancestors(node) | {node}
    return any(
        n.op == "get_attr" and isinstance(n.meta.get("val"), torch.nn.Parameter) for n in made_of
    )


def rank(node: fx.Node) -> int:
    """The number of axes of a node's value; 0 for numbers."""
    return getattr(node.meta.get("val"), "ndim", 0)


def through_dropout(
    program: Program, mine: fx.Node, rest: fx.Node, output: fx.Node, path: str
) -> fx.Node:
    """The prefix's probabilities through the dropouts that the others pass."""
    node: Any = rest
    while node is not output and len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module":
            copy = program.graph.call_module(node.target, (mine,))
            copy.meta = {"module": path, "val": mine.meta["val"]}
            mine = copy
    return mine


def unsupported(attention: Attention, why: str) -> Exception:
    """E110: a prefix cannot be given to this attention."""
    return refuse(
        f"a prefix cannot be put into the attention of {attention.module or attention.name}: {why}",
        code="E110",
        help=("--attn sdpa, where the model has it", "a prompt, an adapter or LoRA instead"),
    )
