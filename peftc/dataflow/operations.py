"""Operations of a graph by name, and the size of what they give."""

from __future__ import annotations

from torch import Tensor, fx, nn

from peftc.capture.program import attribute
from peftc.dataflow.site import Lookup

# Operations that move, cast, scale or shift a value without mixing its features with another's.
UNARY = frozenset([
    "dropout", "_to_copy", "clone", "contiguous", "view", "reshape", "_unsafe_view", "mul",
    "div", "add", "sub", "transpose", "permute", "unsqueeze", "squeeze", "alias", "detach",
    "flatten", "expand",
])  # fmt: skip
# Operations on the way from a weight to its use.
WEIGHT_STEPS = frozenset([
    "t", "transpose", "permute", "_to_copy", "view", "reshape", "unsqueeze", "squeeze",
    "expand", "mul", "div", "add", "sub", "index", "index_select", "contiguous", "clone",
    "select", "slice", "detach", "alias", "getitem", "unbind", "chunk", "split", "mT",
    "_weight_norm",
])  # fmt: skip
# New tensors in the size of another, of which they hold no data.
BLANK = frozenset([
    "new_empty", "new_full", "new_ones", "new_zeros", "empty_like", "full_like", "ones_like",
    "zeros_like",
])  # fmt: skip


def operation(node: fx.Node) -> str:
    """The base name of a node's operation: "linear", "add", "getitem", "dropout", or ""."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        module = attribute(owner, str(node.target)) if owner is not None else None
        return "dropout" if isinstance(module, nn.Dropout) else "module"
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return schema.name.split("::")[1]
    return getattr(node.target, "__name__", "")


def feature_width(node: fx.Node) -> int | None:
    """The fixed size of a value's last axis, or None."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dim() and isinstance(value.shape[-1], int):
        return value.shape[-1]
    return None


def lookup_of(node: fx.Node) -> Lookup | None:
    """The ids and the size of the table of an embedding node."""
    table, ids = node.args[0], node.args[1]
    if not isinstance(table, fx.Node) or not isinstance(ids, fx.Node):
        return None
    return Lookup(ids, table.meta["val"].shape[0])
