"""x W^T + (x A^T) B^T  ->  [x, x A^T] [W, B]^T: a projection and its update are one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftc.backends.onnx_nodes import inserted, ints, only_reader
from peftc.backends.onnx_shared import NARROW, join, joined, narrow


def share_inputs(model: Any, *, folded: bool) -> None:
    """Let inserted weights that project the same input to a few features do so together.

    The weights stay apart, under their own names: they are joined when the file is loaded, or,
    where nothing is folded, in each run. Where they are, the base's weights join as well.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

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
            join(model.graph, group, rows)
    RemoveUnusedNodesPass()(model)


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

    up = only_reader(down.outputs[0], "MatMul")
    if up is None or up.inputs[0] is not down.outputs[0] or narrow(up.inputs[1], axis=1) is None:
        return None
    add = only_reader(up.outputs[0], "Add")
    if add is None or add.outputs[0].is_graph_output() or up.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    whole = next((v for v in add.inputs if v is not up.outputs[0]), None)
    base = whole.producer() if whole is not None else None
    if base is None or only_reader(whole, "Add") is not add:
        return None
    if base.op_type == "Add":
        made = [v.producer() for v in base.inputs if v.producer() is not None]
        if len(made) != 1 or only_reader(made[0].outputs[0], "Add") is not base:
            return None
        base = made[0]
    if base.op_type != "MatMul" or base.inputs[0] is not down.inputs[0]:
        return None
    return Update(up, base, add, whole)


def widen(graph: Any, down: Any, rows: list[int], updates: list[Update]) -> None:
    """Let projections of one x read x and all their updates' x A^T, which `down` is, at once.

    The weights are joined when the file is loaded, those of an update with zeros for the others'.
    An addition over the whole output costs more than a few columns of a product.
    """
    import onnx_ir as ir

    x = updates[0].base.inputs[0]
    wide = ir.node("Concat", [x, down], {"axis": -1})
    wide.outputs[0].type = down.type
    graph.insert_after(down.producer(), wide)
    for k, update in enumerate(updates):
        before, after = sum(rows[:k]), sum(rows[k + 1 :])
        parts = [update.base.inputs[1], *zeros(graph, update, before)]
        parts += [update.up.inputs[1], *zeros(graph, update, after)]
        weight = inserted(graph, update.add, "Concat", parts, like=x, axis=0)
        replace(graph, update, [wide.outputs[0], weight])


def replace(graph: Any, update: Update, inputs: list[Any]) -> None:
    """Put the product of `inputs`, and the bias behind it, in the place of the sum."""
    from onnx_ir.convenience import replace_nodes_and_values

    old, whole, add = update.base.outputs[0], update.whole, update.add
    new = inserted(graph, add, "MatMul", inputs, old.shape)
    if whole is not old:
        both = [new if v is old else v for v in whole.producer().inputs]
        new = inserted(graph, add, "Add", both, whole.shape, like=whole)
    replace_nodes_and_values(graph, add, [add], [], add.outputs, [new])


def zeros(graph: Any, update: Update, rows: int) -> list[Any]:
    """A block of zeros in the joined weight, made when the file is loaded; none of no rows."""
    if not rows:
        return []
    size = ints(graph, rows, update.out)
    block = inserted(graph, update.add, "ConstantOfShape", [size], like=update.up.outputs[0])
    return [block]
