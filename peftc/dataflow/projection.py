"""Linear maps of activations by frozen weights, however the model writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from peftc.capture.channels import pointwise
from peftc.capture.program import attribute
from peftc.dataflow.operations import WEIGHT_STEPS, feature_width
from peftc.dataflow.relations import Relations
from peftc.dataflow.site import Weight


@dataclass(frozen=True)
class Projection:
    """A linear map of an activation by a frozen weight: h = x W^T + b.

    `h` and `x` are in the model's own shape, (batch, length, features), where the model flattens
    rows for the product.
    """

    node: fx.Node  # the product itself
    h: fx.Node
    x: fx.Node
    reader: fx.Node  # the node that reads x
    weight: str
    bias: str | None
    transposed: bool
    width: int
    in_width: int
    routed: bool = False  # the weight is an expert's, chosen for each token by a router

    def weight_at(self, rows: tuple[int, ...]) -> Weight:
        """The weight of a site that has these of the output features."""
        return Weight(
            self.h, self.weight, self.bias, rows, self.width, self.transposed,
            matrix=not pointwise(self.node),
        )  # fmt: skip


def weight_of(facts: Relations, node: Any) -> str | None:
    """The state_dict name of the floating parameter that `node` is a form of, or None."""
    for _ in range(12):
        if not isinstance(node, fx.Node):
            return None
        if facts.op[node] in ("index", "index_select"):
            node = node.args[0]  # experts: the router's choice says which rows, not what
            continue
        if facts.active(node) and not routed(facts, node):
            return None
        if node.op == "get_attr":
            value = attribute(facts.program, str(node.target))
            return str(node.target) if value.is_floating_point() else None
        if facts.op[node] not in WEIGHT_STEPS or not node.args:
            return None
        node = node.args[0]
    return None


def routed(facts: Relations, node: Any) -> bool:
    """Whether a value is a weight whose rows a router has chosen, in another layout."""
    while (
        isinstance(node, fx.Node)
        and facts.op[node] in WEIGHT_STEPS
        and node.args
        and isinstance(node.args[0], fx.Node)
    ):
        if facts.op[node] in ("index", "index_select"):
            return not facts.active(node.args[0]) and facts.active(node)
        node = node.args[0]
    return False


def projection_at(facts: Relations, node: fx.Node) -> Projection | None:
    """The projection that `node` computes, or None."""
    op, args = facts.op[node], node.args
    x: Any
    bias: Any = None
    h: Any = node
    reader: Any = node
    if op == "linear":
        x, w, transposed = args[0], args[1], False
        bias = args[2] if len(args) > 2 else None
    elif op == "addmm":
        bias, x, w, transposed = args[0], args[1], args[2], True
    elif op in ("mm", "matmul", "bmm"):
        if op == "bmm" and weight_of(facts, args[0]) is not None:
            return column_product(facts, node)
        x, w, transposed = args[0], args[1], True
    elif pointwise(node):
        # Capture has put it between two permutations: outside them its channels stand last.
        reader, h = args[0], next(iter(node.users))
        x, w, transposed = reader.args[0], args[1], False  # type: ignore[union-attr]
        bias = args[2] if len(args) > 2 else None
    else:
        return None
    name = weight_of(facts, w)
    if name is None or not isinstance(x, fx.Node) or not facts.active(x):
        return None
    if op in ("addmm", "mm"):
        source, result = x, list(node.users)
        flattened = facts.op[source] == "reshape" and len(result) == 1
        if flattened and facts.op[result[0]] == "reshape":
            h, x, reader = result[0], source.args[0], source
    width, in_width = feature_width(h), feature_width(x)
    if width is None or in_width is None:
        return None
    return Projection(
        node,
        h,
        x,
        reader,
        name,
        weight_of(facts, bias),
        transposed,
        width,
        in_width,
        routed=routed(facts, w),
    )


def column_product(facts: Relations, node: fx.Node) -> Projection | None:
    """bmm(W, x[..., None])[..., 0]: a linear of one token with the weight of its expert."""
    weight, column = node.args[:2]
    readers = list(node.users)
    if facts.op[column] != "unsqueeze" or len(readers) != 1:  # type: ignore[index]
        return None
    if facts.op[readers[0]] != "squeeze":
        return None
    x, h = column.args[0], readers[0]  # type: ignore[union-attr]
    name, width, in_width = weight_of(facts, weight), feature_width(h), feature_width(x)  # type: ignore[arg-type]
    if name is None or width is None or in_width is None:
        return None
    return Projection(node, h, x, column, name, None, False, width, in_width, routed=True)  # type: ignore[arg-type]
