"""x A^T, x C^T  ->  Split(x [A; C]^T): narrow products with one input are one product."""

from __future__ import annotations

from typing import Any

from peftc.capture.program import PEFT_PREFIX

NARROW = 32  # rows: a wider weight fills the registers of a CPU by itself


def share_inputs(model: Any) -> None:
    """Let inserted weights that project the same input to a few features do so together.

    The weights stay apart, under their own names: they are joined when the file is loaded, or,
    where nothing is folded, in each run.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    groups: dict[Any, list[Any]] = {}
    for node in model.graph:
        if node.op_type == "MatMul" and narrow(node.inputs[1]) is not None:
            groups.setdefault(node.inputs[0], []).append(node)
    for group in groups.values():
        if len(group) > 1:
            join(model.graph, group)
    RemoveUnusedNodesPass()(model)


def narrow(value: Any) -> Any:
    """The inserted weight of a few rows that a value is the transpose of, or None."""
    turned = value.producer()
    if turned is None or turned.op_type != "Transpose":
        return None
    weight = turned.inputs[0]
    few = weight.is_initializer() and len(weight.shape) == 2 and weight.shape[0] <= NARROW
    return weight if few and weight.name.startswith(PEFT_PREFIX) else None


def join(graph: Any, group: list[Any]) -> None:
    """Put one product and a Split in the place of several."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    weights = [narrow(node.inputs[1]) for node in group]
    rows = [weight.shape[0] for weight in weights]
    name = f"rows_{group[0].outputs[0].name}"
    sizes = ir.Value(name=name, const_value=ir.tensor(rows, dtype=ir.DataType.INT64, name=name))
    graph.register_initializer(sizes)
    joined = ir.node("Concat", weights, {"axis": 0})
    turned = ir.node("Transpose", joined.outputs, {"perm": [1, 0]})
    product = ir.node("MatMul", [group[0].inputs[0], *turned.outputs])
    parts = ir.node("Split", [*product.outputs, sizes], {"axis": -1}, num_outputs=len(group))
    for node in (joined, turned, product):
        node.outputs[0].type = group[0].outputs[0].type
    old = [out for node in group for out in node.outputs]
    new = [joined, turned, product, parts]
    # Before the first of them: behind it the others' readers may already stand.
    graph.insert_before(group[0], new)
    replace_nodes_and_values(graph, parts, group, [], old, parts.outputs)
