"""Reading and writing an ONNX graph node by node: who makes a value, who reads it, new nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def only_reader(value: Any, kind: str) -> Any:
    """The node that alone reads a value, if it is of that kind."""
    readers = [reader for reader, _ in value.uses()]
    alone = len(readers) == 1 and not value.is_graph_output()
    return readers[0] if alone and readers[0].op_type == kind else None


def maker(value: Any, kind: str) -> Any:
    """The node that gives a value, if it is of that kind."""
    node = value.producer()
    return node if node is not None and node.op_type == kind else None


def inserted(
    graph: Any,
    node: Any,
    kind: str,
    inputs: Sequence[Any],
    shape: Sequence[Any] | None = None,
    *,
    like: Any = None,
    **attributes: Any,
) -> Any:
    """The value of a new node before `node`, of the type of `like`, or of its first input."""
    import onnx_ir as ir

    new = ir.node(kind, inputs, attributes)
    graph.insert_before(node, new)
    value = new.outputs[0]
    value.type = (inputs[0] if like is None else like).type
    value.shape = None if shape is None else ir.Shape(shape)
    return value


def ints(graph: Any, *values: int) -> Any:
    """An initializer of integers, one for all who need the same."""
    import onnx_ir as ir

    name = "ints_" + "_".join(map(str, values))
    if name not in graph.initializers:
        tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
