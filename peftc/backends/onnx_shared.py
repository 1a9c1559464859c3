"""x A^T, x C^T  ->  Split(x [A; C]^T): narrow products with one input are one product."""

from __future__ import annotations

from typing import Any

from peftc.backends.onnx_nodes import inserted, ints, maker
from peftc.capture.piece_name import is_inserted

NARROW = 32  # rows: a wider weight fills the registers of a CPU by itself


def narrow(value: Any, axis: int = 0) -> Any:
    """The inserted weight of a few rows, or columns, that a value is the transpose of, or None."""
    turned = maker(value, "Transpose")
    if turned is None:
        return None
    weight = turned.inputs[0]
    few = weight.is_initializer() and len(weight.shape) == 2 and weight.shape[axis] <= NARROW
    return weight if few and is_inserted(weight.name) else None


def joined(graph: Any, group: list[Any]) -> Any:
    """X [A; C]^T, in front of the first of several products; of one, what it gives."""
    first = group[0]
    if len(group) == 1:
        return first.outputs[0]
    # Before the first of them: behind it the others' readers may already stand.
    both = inserted(graph, first, "Concat", [narrow(n.inputs[1]) for n in group], axis=0)
    turned = inserted(graph, first, "Transpose", [both], perm=(1, 0))
    return inserted(graph, first, "MatMul", [first.inputs[0], turned])


def join(graph: Any, group: list[Any], rows: list[int]) -> None:
    """Put one product and a Split in the place of several, each with so many rows of weight."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    product = joined(graph, group)
    inputs = [product, ints(graph, *rows)]
    parts = ir.node("Split", inputs, {"axis": -1}, num_outputs=len(group))
    graph.insert_after(product.producer(), parts)
    old = [out for node in group for out in node.outputs]
    replace_nodes_and_values(graph, parts, group, [], old, parts.outputs)
