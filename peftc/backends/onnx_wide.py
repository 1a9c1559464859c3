"""x W^T + (x A^T) B^T  ->  [x, x A^T] [W, B]^T: a projection and its update are one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftc.backends.onnx_shared import narrow


@dataclass(frozen=True)
class Update:
    """What is around x A^T: the products with B and W, and the addition of both."""

    up: Any  # u B^T
    base: Any  # x W^T
    add: Any  # base, perhaps with its bias, + up
    whole: Any  # the value that base and bias make, which stands for the sum afterwards

    @property
    def out(self) -> int:
        """The features of the projection."""
        return narrow(self.up.inputs[1], axis=1).shape[0]


def update_of(down: Any) -> Update | None:
    """The update that a product x A^T belongs to, if nothing else reads what goes into its sum."""
    import onnx_ir as ir

    up = alone(down.outputs[0], "MatMul")
    if up is None or up.inputs[0] is not down.outputs[0] or narrow(up.inputs[1], axis=1) is None:
        return None
    add = alone(up.outputs[0], "Add")
    if add is None or add.outputs[0].is_graph_output() or up.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    whole = next((v for v in add.inputs if v is not up.outputs[0]), None)
    base = whole.producer() if whole is not None else None
    if base is None or alone(whole, "Add") is not add:
        return None
    if base.op_type == "Add":
        made = [v.producer() for v in base.inputs if v.producer() is not None]
        if len(made) != 1 or alone(made[0].outputs[0], "Add") is not base:
            return None
        base = made[0]
    if base.op_type != "MatMul" or base.inputs[0] is not down.inputs[0]:
        return None
    return Update(up, base, add, whole)


def alone(value: Any, kind: str) -> Any:
    """The node that alone reads a value, if it is of that kind."""
    readers = [reader for reader, _ in value.uses()]
    fits = len(readers) == 1 and readers[0].op_type == kind and not value.is_graph_output()
    return readers[0] if fits else None


def widen(graph: Any, down: Any, rows: list[int], updates: list[Update]) -> None:
    """Let projections of one x read x and all their updates' x A^T, made by `down`, at once.

    The weights are joined when the file is loaded, those of an update with zeros for the others'.
    An addition over the whole output costs more than a few columns of a product.
    """
    import onnx_ir as ir

    wide = ir.node("Concat", [down.inputs[0], down.outputs[0]], {"axis": -1})
    wide.outputs[0].type = down.outputs[0].type
    graph.insert_after(down, wide)
    for k, update in enumerate(updates):
        before, after = sum(rows[:k]), sum(rows[k + 1 :])
        parts = [update.base.inputs[1], update.up.inputs[1]]
        parts[1:1] = zeros(graph, update, before)
        parts += zeros(graph, update, after)
        weight = ir.node("Concat", parts, {"axis": 0})
        weight.outputs[0].type = wide.outputs[0].type
        product = ir.node("MatMul", [wide.outputs[0], weight.outputs[0]])
        product.outputs[0].type = wide.outputs[0].type
        product.outputs[0].shape = update.base.outputs[0].shape
        graph.insert_before(update.add, [weight, product])
        moved(graph, update, product)


def moved(graph: Any, update: Update, product: Any) -> None:
    """Put the product, and the bias behind it, in the place of the sum."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_nodes_and_values

    last = product
    bias = update.whole.producer()
    if bias is not update.base:
        old = update.base.outputs[0]
        inputs = [product.outputs[0] if v is old else v for v in bias.inputs]
        last = ir.node("Add", inputs)
        last.outputs[0].type, last.outputs[0].shape = update.whole.type, update.whole.shape
        graph.insert_before(update.add, last)
    replace_nodes_and_values(graph, update.add, [update.add], [], update.add.outputs, last.outputs)


def zeros(graph: Any, update: Update, rows: int) -> list[Any]:
    """A block of zeros in the joined weight, made when the file is loaded; none of no rows."""
    import onnx_ir as ir

    if not rows:
        return []
    name = f"zeros_{rows}_{update.out}"
    if name not in graph.initializers:
        size = ir.tensor([rows, update.out], dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(ir.Value(name=name, const_value=size))
    block = ir.node("ConstantOfShape", [graph.initializers[name]])
    block.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(update.add, block)
    return [block.outputs[0]]
