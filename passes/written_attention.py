"""softmax(q k^T) v written out  ->  softmax([q P_k^T; q k^T]) [P_v; v], masks as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.site import Attention
from peftc.diagnostics import error
from peftc.passes.base import after, call
from peftc.passes.values import described

aten = torch.ops.aten
END = torch.iinfo(torch.int64).max
# Steps between the scores and the softmax that a prefix's scores go through as well.
SCALING = {
    aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.tanh.default,
    aten._to_copy.default, aten.clamp.default,
}  # fmt: skip
# Steps that add a mask or a bias to the scores: every query sees the prefix, with no bias.
MASKING = {
    aten.add.Tensor, aten.sub.Tensor, aten.where.self, aten.masked_fill.Scalar,
    aten.masked_fill.Tensor, aten.maximum.default, aten.clone.default, aten.expand.default,
}  # fmt: skip


def attend_beside(program: Program, attention: Attention, key: fx.Node, value: fx.Node) -> None:
    """Give a written-out attention a prefix: key, value are (batch, heads, tokens, dim).

    %s = matmul(%q, %k); ...; %p = softmax(%m); %o = matmul(%p, %v)
      ->  %ps = scaled matmul(%q, %key^T); %p = softmax(cat([%ps, %m]))
          %o = matmul(%p[tokens:], %v) + matmul(%p[:tokens], %value)

    Raises:
        PeftcError: E110 where heads are flattened into the batch, or a step is unknown.
    """
    softmax, scores, output, path = (
        attention.node, attention.scores, attention.output, attention.module,
    )  # fmt: skip
    given = softmax.args[0]
    shape = "it does not keep (batch, heads, length, keys)"
    if not isinstance(given, fx.Node) or scores is None or output is None:
        raise unsupported(attention, shape)
    if any(n.meta["val"].dim() != 4 for n in (attention.q, softmax, output, scores)):
        raise unsupported(attention, shape)
    tokens = key.meta["val"].shape[2]
    with program.graph.inserting_before(softmax):
        turned = call(program, aten.transpose.int, (key, 2, 3), path)
        beside = call(program, aten.matmul.default, (attention.q, turned), path)
        for step in steps(scores, given, attention):
            beside = repeated(program, step, beside, attention)
        joined = call(program, aten.cat.default, ([beside, given], -1), path)
    readers = list(softmax.users)
    softmax.replace_input_with(given, joined)
    softmax.meta["stale"] = True
    with after(softmax):
        # The prefix's part first: what follows sees the probabilities it always saw.
        mine = call(program, aten.slice.Tensor, (softmax, -1, 0, tokens), path)
        rest = call(program, aten.slice.Tensor, (softmax, -1, tokens, END), path)
    for reader in readers:
        reader.replace_input_with(softmax, rest)
    for node in (mine, rest):
        node.meta["stale"] = True
    with program.graph.inserting_before(output):
        mine = through_dropout(program, mine, rest, output, path)
        dtype = value.meta["val"].dtype
        if mine.meta["val"].dtype != dtype:
            mine = call(program, aten._to_copy.default, (mine,), path, dtype=dtype)
        extra = call(program, aten.matmul.default, (mine, value), path)
    users = list(output.users)
    with after(output):
        total = call(program, aten.add.Tensor, (output, extra), path)
    for user in users:
        user.replace_input_with(output, total)


def steps(scores: fx.Node, given: fx.Node, attention: Attention) -> list[fx.Node]:
    """The nodes from the scores to the softmax's input, in order, those on the scores' own line."""
    line: list[fx.Node] = []
    shape = described(scores.meta["val"])[1:]
    node = given
    while node is not scores:
        line.append(node)
        sources = [
            n
            for n in node.all_input_nodes
            if depends(n, scores) and described(n.meta["val"])[1:] == shape
        ]
        if len(sources) != 1:
            raise unsupported(attention, f"`{node.name}` is not one step on its scores")
        node = sources[0]
    return line[::-1]


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
    if step.target in MASKING:
        return beside
    if step.target not in SCALING:
        raise unsupported(attention, f"`{step.target}` is an unknown step on its scores")
    first = step.args[0]
    others = [a for a in step.args[1:] if isinstance(a, fx.Node)]
    if any(str(n.meta["val"].shape[-1:]) != "torch.Size([1])" for n in others if rank(n)):
        raise unsupported(attention, "its scores are multiplied with a value for each key")
    args = (beside, *step.args[1:]) if isinstance(first, fx.Node) else step.args
    return call(program, step.target, args, attention.module, **step.kwargs)


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
    return error(
        "E110",
        f"a prefix cannot be put into the attention of {attention.module or attention.name}: {why}",
        help=("--attn sdpa, where the model has it", "a prompt, an adapter or LoRA instead"),
    )
