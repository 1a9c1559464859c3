"""Whether an exported graph is functional as it stands, or nearly: no need to trace it again."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

aten = torch.ops.aten
CASTS = (
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default,
)  # fmt: skip
# What `normalise` writes in another way, or leaves as it is.
KNOWN = frozenset([*CASTS, aten.contiguous.default, aten.chunk.default, aten.reshape.default])
DROPOUT = "peftc::dropout"  # see trace.mark_dropouts
# What a graph without writing needs no more: a constant's own copy.
COPIES = frozenset([aten.lift_fresh_copy.default, aten.detach_.default])


def is_functional(exported: ExportedProgram, decompositions: Any) -> bool:
    """Whether no operation calls a graph, is to be decomposed, or writes where others read."""
    calls = [n for n in exported.graph.nodes if n.op not in ("placeholder", "output")]
    return all(n.op == "call_function" and is_pure(n, decompositions) for n in calls)


def is_pure(node: fx.Node, decompositions: Any) -> bool:
    """Whether a second tracing would leave this operation as it is, or as `normalise` does."""
    target = node.target
    if not isinstance(target, OpOverload):
        return getattr(target, "__module__", "") in (operator.__name__, "_operator", "math") or (
            getattr(target, "__name__", "").startswith("sym_")
        )
    if target in CASTS and not same_device(node):
        return False
    if target in KNOWN or target in COPIES:
        return True
    if target._schema.is_mutable:
        return functional_form(node) is not None
    if target in decompositions:
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd"
    )
    return not (composite and gives_views(target))


def functional_form(node: fx.Node) -> OpOverload | None:
    """`add` for `add_`, where what is written into has memory that nothing else shows."""
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.removeprefix("aten::")
    x = node.args[0] if node.args else None
    if not name.endswith("_") or name == "copy_" or not isinstance(x, fx.Node) or not own(x):
        return None
    if any(u is not node and not is_fresh(u) for u in x.users):
        return None
    packet = getattr(aten, name[:-1], None)
    return getattr(packet, target._overloadname, None)


def own(x: fx.Node) -> bool:
    """Whether a value is a new tensor, and no view of another's memory."""
    if x.target is operator.getitem:
        x = x.args[0]  # type: ignore[assignment]
    return x.op == "call_function" and isinstance(x.target, OpOverload) and is_fresh(x)


def is_fresh(node: fx.Node) -> bool:
    """Whether an operation gives new tensors: a dropout at rest may give its input."""
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    return not gives_views(target) and target._schema.name not in ("aten::dropout", DROPOUT)


def gives_views(target: OpOverload) -> bool:
    """Whether what an operation gives may share memory with what it is given."""
    return any(r.alias_info is not None for r in target._schema.returns)


def same_device(node: fx.Node) -> bool:
    """Whether a cast leaves its value on the device where it is."""
    made, given = node.meta.get("val"), node.all_input_nodes[0].meta.get("val")
    return isinstance(made, Tensor) and isinstance(given, Tensor) and made.device == given.device
