"""Attention with heads in front  ->  with heads side by side, as projections give and take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftc.backends.onnx_nodes import inserted, ints, maker, only_reader

SWAP = (0, 2, 1, 3)


def merge_heads(model: Any) -> None:
    """Let attention read and write (batch, length, heads * dim), so that nothing is transposed.

    %o = Reshape(Transpose(Attention(T(%q), [%P; T(%k)], [%R; T(%v)]))), T = Transpose(Reshape(.))
      ->  %o = Attention(%q, [T'(%P); %k], [T'(%R); %v]){q_num_heads, kv_num_heads}

    The numbers are the same. In float32 alone: ONNX Runtime's kernel for halves on a CPU converts
    the rows of all heads anew for each head. An attention stays as it is where its queries, keys
    or values are computed head by head, as rotary positions are.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in list(model.graph):
        if node.op_type == "Attention" and not node.domain:
            merge(model.graph, node)
    RemoveUnusedNodesPass()(model)


def merge(graph: Any, node: Any) -> None:
    """Merge the heads of one attention, if its surroundings allow it."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    reader = behind(node)
    q, k, v, *rest = node.inputs
    if reader is None or q.dtype != ir.DataType.FLOAT or any(r is not None for r in rest[1:]):
        return
    if not all(mergeable(x) for x in (q, k, v)):
        return
    inputs = [merged(graph, node, x) for x in (q, k, v)]
    heads = {"q_num_heads": dims(q)[1], "kv_num_heads": dims(k)[1]}
    batch, length, _, _ = split = dims(reader.inputs[0])
    shape = [batch, length, split[2] * split[3]]
    whole = inserted(graph, node, "Attention", [*inputs, *rest], shape, **node.attributes, **heads)
    if dims(reader.outputs[0]) == shape:
        replace_nodes_and_values(graph, reader, [reader], [], reader.outputs, [whole])
    else:
        reader.replace_input_with(0, whole)


def behind(node: Any) -> Any:
    """The Reshape that merges the heads of what an attention gives, if nothing else reads that."""
    turned = only_reader(node.outputs[0], "Transpose")
    if turned is None or turned.attributes["perm"].as_ints() != SWAP:
        return None
    reader = only_reader(turned.outputs[0], "Reshape")
    if reader is None or not known(turned.outputs[0], 2, 3):
        return None
    return reader if len(dims(reader.outputs[0])) in (2, 3) else None


def dims(value: Any) -> list[Any]:
    """The shape of a value as far as it is known."""
    return [] if value.shape is None else list(value.shape)


def known(value: Any, *axes: int) -> bool:
    """Whether a value has four axes, and these of them have fixed sizes."""
    shape = dims(value)
    return len(shape) == 4 and all(isinstance(shape[k], int) for k in axes)


def operands(value: Any) -> Sequence[Any]:
    """What a value is joined of along the length: itself, or a prefix and the model's own."""
    joins = maker(value, "Concat")
    return joins.inputs if joins and joins.attributes["axis"].as_int() == 2 else [value]


def mergeable(value: Any) -> bool:
    """Whether the heads of a value are split off just before, but perhaps for a prefix's."""
    parts = operands(value)
    shaped = all(known(x, 1, 3) for x in (value, *parts))
    return shaped and any(unsplit(x) is not None for x in parts)


def unsplit(value: Any) -> Any:
    """x, where a value is Transpose(Reshape(x)) from (batch, length, heads * dim); or None."""
    turned = maker(value, "Transpose")
    if turned is None or turned.attributes["perm"].as_ints() != SWAP:
        return None
    made = maker(turned.inputs[0], "Reshape")
    if made is None or not known(turned.inputs[0], 2, 3):
        return None
    batch, length, heads, dim = dims(turned.inputs[0])
    whole = made.inputs[0]
    return whole if dims(whole) == [batch, length, heads * dim] else None


def merged(graph: Any, node: Any, value: Any) -> Any:
    """A value (batch, heads, length, dim) as (batch, length, heads * dim), made before `node`."""
    if (whole := unsplit(value)) is not None:
        return whole
    batch, heads, length, dim = dims(value)
    shape = [batch, length, heads * dim]
    parts = operands(value)
    if len(parts) > 1:
        side_by_side = [merged(graph, node, part) for part in parts]
        return inserted(graph, node, "Concat", side_by_side, shape, axis=1)
    made = maker(value, "Expand")
    if made and dims(made.inputs[0])[1:] == [heads, length, dim]:
        # One prefix for all rows is turned before it is repeated, so that this can be folded.
        prefix = merged(graph, node, made.inputs[0])
        rows = inserted(graph, node, "Gather", [made.inputs[1], ints(graph, 0)], [1])
        sizes = inserted(graph, node, "Concat", [rows, ints(graph, 1, 1)], [3], axis=0)
        return inserted(graph, node, "Expand", [prefix, sizes], shape)
    turned = inserted(graph, node, "Transpose", [value], [batch, length, heads, dim], perm=SWAP)
    return inserted(graph, node, "Reshape", [turned, ints(graph, 0, 0, heads * dim)], shape)
