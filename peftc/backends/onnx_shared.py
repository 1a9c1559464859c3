"""x A^T, x C^T  ->  Split(x [A; C]^T): narrow products with one input are one product."""

from __future__ import annotations

from typing import Any

from peftc.capture.program import PEFT_PREFIX

NARROW = 32  # rows: a wider weight fills the registers of a CPU by itself


def share_inputs(model: Any, *, folded: bool) -> None:
    """Let inserted weights that project the same input to a few features do so together.

    The weights stay apart, under their own names: they are joined when the file is loaded, or,
    where nothing is folded, in each run. Where they are, the base's weights join as well.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from peftc.backends.onnx_wide import update_of, widen

    groups: dict[Any, list[Any]] = {}
    for node in model.graph:
        if node.op_type == "MatMul" and narrow(node.inputs[1]) is not None:
            groups.setdefault(node.inputs[0], []).append(node)
    for group in groups.values():
        rows = [narrow(node.inputs[1]).shape[0] for node in group]
        updates = [update for node in group if (update := update_of(node)) is not None]
        if folded and len(updates) == len(group) and sum(rows) <= NARROW:
            widen(model.graph, joined(model.graph, group), rows, updates)
        elif len(group) > 1:
            join(model.graph, group)
    RemoveUnusedNodesPass()(model)


def narrow(value: Any, axis: int = 0) -> Any:
    """The inserted weight of a few rows, or columns, that a value is the transpose of, or None."""
    turned = value.producer()
    if turned is None or turned.op_type != "Transpose":
        return None
    weight = turned.inputs[0]
    few = weight.is_initializer() and len(weight.shape) == 2 and weight.shape[axis] <= NARROW
    return weight if few and weight.name.startswith(PEFT_PREFIX) else None


def joined(graph: Any, group: list[Any]) -> Any:
    """One product in front of the first of several, of all their weights' rows."""
    import onnx_ir as ir

    if len(group) == 1:
        return group[0]
    weights = [narrow(node.inputs[1]) for node in group]
    both = ir.node("Concat", weights, {"axis": 0})
    turned = ir.node("Transpose", both.outputs, {"perm": [1, 0]})
    product = ir.node("MatMul", [group[0].inputs[0], *turned.outputs])
    for node in (both, turned, product):
        node.outputs[0].type = group[0].outputs[0].type
    # Before the first of them: behind it the others' readers may already stand.
    graph.insert_before(group[0], [both, turned, product])
    return product


def join(graph: Any, group: list[Any]) -> None:
    """Put one product and a Split in the place of several."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    rows = [narrow(node.inputs[1]).shape[0] for node in group]
    name = f"rows_{group[0].outputs[0].name}"
    sizes = ir.Value(name=name, const_value=ir.tensor(rows, dtype=ir.DataType.INT64, name=name))
    graph.register_initializer(sizes)
    product = joined(graph, group)
    parts = ir.node("Split", [*product.outputs, sizes], {"axis": -1}, num_outputs=len(group))
    graph.insert_after(product, parts)
    old = [out for node in group for out in node.outputs]
    replace_nodes_and_values(graph, parts, group, [], old, parts.outputs)
