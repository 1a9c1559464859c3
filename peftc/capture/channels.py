"""permute(f(permute(x)))  ->  f(x): streams that stand channel-first are turned channel-last.

Convolutions with kernels of one element are linears over channels, and some models keep their
whole residual stream in (batch, channels, length) for them. Only permutations move: every
operation computes the same numbers from the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from peftc.capture.program import drop_unused

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.convolution.default)
# Operations on single elements: those that round alike in every layout, and those that may not.
ARITHMETIC = frozenset(
    f"aten::{n}" for n in ("add", "sub", "mul", "div", "neg", "relu", "clone", "_to_copy")
)
CURVES = frozenset(
    f"aten::{n}"
    for n in ("gelu", "silu", "tanh", "sigmoid", "erf", "hardtanh", "leaky_relu", "elu")
)


def channels_last(graph: fx.Graph) -> None:
    """Rewrite what stands between pointwise convolutions and permutations of their channels.

    convolution:  %y = conv(%x)  ->  %y = permute(%t), %t = permute(conv(permute(permute(%x))))
    activation:   %z = g(permute(%t))  ->  %z = permute(%u), %u = permute(g(permute(%t)))
    arithmetic:   %z = permute(%t) + permute(%u)  ->  %z = permute(%t + %u)
    permutation:  permute(permute(%t))  ->  %t

    So a residual stream that convolutions add to stands channels last, and each convolution
    between two permutations.
    """
    if not any(pointwise(n) for n in graph.nodes):
        return
    turned: dict[fx.Node, fx.Node] = {}  # a permutation, and what it permutes
    made: set[fx.Node] = set()  # what comes from a pointwise convolution, element by element
    for node in list(graph.nodes):
        inputs = node.all_input_nodes
        if is_turn(node):
            if inputs[0] in turned:
                node.replace_all_uses_with(turned[inputs[0]])
            else:
                turned[node] = inputs[0]
            continue
        if conv := pointwise(node):
            if inputs[0] not in turned:
                with graph.inserting_before(node):
                    x = permuted(graph, permuted(graph, inputs[0], node), node)
                node.update_arg(0, x)
        elif not any(a in made for a in inputs):
            continue
        if conv or on_elements(node, CURVES):
            readers = list(node.users)
            with graph.inserting_before(node.next):
                inner = permuted(graph, node, node, inside=True)
                outer = permuted(graph, inner, node)
            for reader in readers:
                reader.replace_input_with(node, outer)
        elif on_elements(node, ARITHMETIC) and all(
            a in turned for a in inputs if a.meta["val"].dim()
        ):
            with graph.inserting_before(node):
                inner = graph.node_copy(node, lambda a: turned.get(a, a))
                inner.meta = {**node.meta, "val": turn(node.meta["val"])}
                outer = permuted(graph, inner, node)
            node.replace_all_uses_with(outer)
        else:
            continue
        turned[outer] = inner
        made.add(outer)
    drop_unused(graph)


def permuted(graph: fx.Graph, x: fx.Node, like: fx.Node, *, inside: bool = False) -> fx.Node:
    """permute(%x), inside the module of `like` or around it."""
    node = graph.call_function(aten.permute.default, (x, [0, 2, 1]))
    path = like.meta.get("module", "")
    path = path if inside else path.rpartition(".")[0]
    node.meta = {**like.meta, "val": turn(x.meta["val"]), "module": path}
    return node


def turn(value: Tensor) -> Tensor:
    """(B, C, T)  ->  (B, T, C)."""
    return value.permute(0, 2, 1)


def is_turn(node: fx.Node) -> bool:
    """Whether a node only exchanges the last two of three axes."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() != 3:
        return False
    if node.target is aten.permute.default:
        return [d % 3 for d in node.args[1]] == [0, 2, 1]  # type: ignore[union-attr, operator]
    if node.target is aten.transpose.int:
        return {d % 3 for d in node.args[1:]} == {1, 2}  # type: ignore[operator]
    return False


def on_elements(node: fx.Node, operations: frozenset[str]) -> bool:
    """Whether a node is one of these operations on (B, C, T), or a dropout."""
    values = [a.meta.get("val") for a in (node, *node.all_input_nodes)]
    if not all(isinstance(v, Tensor) and v.dim() in (0, 3) for v in values):
        return False
    if node.op == "call_module":  # dropouts are the only modules of a captured graph
        return operations is ARITHMETIC
    return isinstance(node.target, OpOverload) and node.target._schema.name in operations


def pointwise(node: fx.Node) -> bool:
    """Whether a node is a convolution over (B, C, T) whose kernels have one element."""
    if node.target not in CONVOLUTIONS or not isinstance(node.args[1], fx.Node):
        return False
    weight, value = node.args[1].meta.get("val"), node.meta.get("val")
    if not isinstance(weight, Tensor) or not isinstance(value, Tensor):
        return False
    steps = [x for a in node.args[3:5] if isinstance(a, list | tuple) for x in a]
    return weight.dim() == value.dim() == 3 and weight.shape[-1] == 1 and steps in ([], [1], [1, 0])
