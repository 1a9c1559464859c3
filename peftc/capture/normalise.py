"""torch.export.ExportedProgram -> Program: weights by name, no guards, dropouts as modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from peftc.capture.channels import channels_last
from peftc.capture.functional import CASTS, COPIES, functional_form
from peftc.capture.inputs import Example
from peftc.capture.program import Program, build, drop_unused
from peftc.capture.signature import signature_of
from peftc.capture.walk import module_of

# A view holds only for the strides of the traced run; another attention kernel gives others.
VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
CHECKS = ("_assert", "sym_constrain")
WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def normalise(exported: ExportedProgram, model: Any, example: Example) -> Program:
    """Lift the exported graph into a Program.

    Weight placeholders become get_attr nodes under their `state_dict` names (frozen parameters
    over the model's own storage); guards and asserts go; eval dropouts become `nn.Dropout`
    modules, so that `program.train()` has the model's own.
    """
    source = exported.graph
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    targets: dict[str, Any] = {}
    specs = {s.arg.name: s for s in exported.graph_signature.input_specs}
    placeholders = [n for n in source.nodes if n.op == "placeholder"]
    for node in placeholders:
        if specs[node.name].kind == InputKind.USER_INPUT:
            values[node] = copied(graph.placeholder(node.name), node)
    for node in placeholders:
        spec = specs[node.name]
        if spec.kind in WEIGHTS and node.users:
            target = str(spec.target)
            targets[target] = frozen(weight(exported, target), spec.kind)
            values[node] = copied(graph.get_attr(target), node)
    for node in source.nodes:
        if node.op == "call_function" and not is_check(node):
            values[node] = lift(node, graph, values, targets)
    returned = [values[n] for n in source.output_node().args[0]]  # type: ignore[union-attr]
    graph.output(tuple(returned))
    drop_unused(graph)
    channels_last(graph)
    used = {n.target for n in graph.nodes if n.op in ("get_attr", "call_module")}
    return build(
        {t: v for t, v in targets.items() if t in used},
        graph,
        signature_of(exported, model, example, returned),
    )


def lift(
    node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node], targets: dict[str, Any]
) -> fx.Node:
    """Copy one node; `%d = peftc.dropout(%x, p)`  ->  `%d = call_module dropout.<path>(%x)`."""
    if node.target is torch.ops.peftc.dropout.default:
        x, p = node.args
        if p == 0.0:
            return values[x]  # type: ignore[index]
        path = f"dropout.{module_of(node)}".rstrip(".").replace(".", "_")
        name, k = path, 2
        while name in targets:
            name, k = f"{path}_{k}", k + 1
        targets[name] = nn.Dropout(float(p))  # type: ignore[arg-type]
        return copied(graph.call_module(name, (values[x],)), node)  # type: ignore[index]
    if node.target is torch.ops.aten.copy.default:
        return copied_values(node, graph, values)
    if node.target in CASTS:
        return cast(values[node.args[0]], node, graph)  # type: ignore[index]
    if node.target in COPIES:
        return values[node.args[0]]  # type: ignore[index]
    if node.target is torch.ops.aten.contiguous.default:
        return in_order(node, graph, values)
    if node.target is torch.ops.aten.chunk.default:
        return in_parts(node, graph, values)
    if node.target is torch.ops.aten.cat.default:
        return joined(node, graph, values)
    new = copied(graph.node_copy(node, values.__getitem__), node)
    if (form := functional_form(node)) is not None:
        new.target = form
        values[node.args[0]] = new  # type: ignore[index]
    if new.target in VIEWS:
        new.target = torch.ops.aten.reshape.default
    return new


def copied_values(node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """copy(%into, %source)  ->  %source in the shape and dtype of %into.

    What functionalisation makes of writing into an empty tensor; it has no derivative.
    """
    into, source = node.args[:2]
    have, want = source.meta["val"], node.meta["val"]  # type: ignore[union-attr]
    value = cast(values[source], node, graph)  # type: ignore[index]
    if tuple(map(str, have.shape)) != tuple(map(str, want.shape)):
        args = (value, values[into])  # type: ignore[index]
        value = copied(graph.call_function(torch.ops.aten.expand_as.default, args), node)
    return value


def cast(value: fx.Node, node: fx.Node, graph: fx.Graph) -> fx.Node:
    """`value` in the dtype of what `node` gives."""
    have, dtype = value.meta["val"], node.meta["val"].dtype
    if have.dtype == dtype:
        return value
    new = copied(
        graph.call_function(torch.ops.aten._to_copy.default, (value,), {"dtype": dtype}), node
    )
    new.meta["val"] = have.to(dtype)
    return new


def in_order(node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """contiguous(%x)  ->  clone(%x), or %x where its elements stand in order."""
    x: fx.Node = node.args[0]  # type: ignore[assignment]
    if [*map(str, x.meta["val"].stride())] == [*map(str, node.meta["val"].stride())]:
        return values[x]
    return laid_out(values[x], node, graph)


def laid_out(value: fx.Node, node: fx.Node, graph: fx.Graph) -> fx.Node:
    """`value` in memory of its own, its elements in order, as what `node` gives."""
    kept: dict[str, Any] = {"memory_format": torch.contiguous_format}
    clone = torch.ops.aten.clone.default
    return copied(graph.call_function(clone, (value,), kept), node)


def in_parts(node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """chunk(%x, n, axis)  ->  split(%x, size, axis), where the size is a number."""
    x, _, axis = (*node.args, 0)[:3]
    size = node.meta["val"][0].shape[axis]
    if not isinstance(size, int):
        return copied(graph.node_copy(node, values.__getitem__), node)
    split = torch.ops.aten.split.Tensor
    return copied(graph.call_function(split, (values[x], size, axis)), node)  # type: ignore[index]


def joined(node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """cat([%empty, %x])  ->  clone(%x): what an empty cache leaves behind."""
    parts: Any = node.args[0]
    full = [p for p in parts if 0 not in [d for d in p.meta["val"].shape if isinstance(d, int)]]
    if len(full) == 1 < len(parts):
        return laid_out(values[full[0]], node, graph)  # as cat gives it, to the last bit
    return copied(graph.node_copy(node, values.__getitem__), node)


def copied(new: fx.Node, old: fx.Node) -> fx.Node:
    """Keep what later stages read: the fake value and the path of the module it came from."""
    new.meta = {"val": old.meta.get("val"), "module": module_of(old)}
    return new


def is_check(node: fx.Node) -> bool:
    """Whether the node only checks (asserts, range constraints) and computes nothing."""
    name = getattr(node.target, "__name__", str(node.target))
    return name.startswith(CHECKS) or str(node.target).startswith(
        tuple(f"aten.{c}" for c in CHECKS)
    )


def weight(exported: ExportedProgram, target: str) -> Tensor:
    """The tensor that a lifted placeholder stands for."""
    if target in exported.state_dict:
        return exported.state_dict[target]
    return exported.constants[target]  # type: ignore[return-value]


def frozen(tensor: Tensor, kind: InputKind) -> Tensor:
    """A parameter without gradient over the same storage; buffers and constants as they are."""
    if kind == InputKind.PARAMETER:
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor.detach()
