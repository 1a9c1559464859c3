"""Fake values of nodes: what each gives, as shapes with symbols, without computing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from peftc.capture.program import Program, attribute


def fake_mode(program: Program) -> FakeTensorMode:
    """The fake mode, with its symbols, that the program was captured under."""
    node = next(n for n in program.graph.nodes if n.op == "placeholder")
    return node.meta["val"].fake_mode


def set_value(program: Program, node: fx.Node) -> None:
    """Set `node.meta["val"]` from its inputs' values."""
    first = next(n for n in program.graph.nodes if n.op == "placeholder")
    mode, device = fake_mode(program), first.meta["val"].device
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
    # Without the Python dispatcher some kernels would fix free sizes to those of the example.
    with mode, enable_python_dispatcher(), torch.no_grad():
        if node.op == "get_attr":
            value = fake(mode, attribute(program, str(node.target)), device)
        elif node.op == "call_module":
            module = attribute(program, str(node.target))
            state = dict(module.named_parameters()) | dict(module.named_buffers())
            state = {n: fake(mode, t, device) for n, t in state.items()}
            value = (
                functional_call(module, state, args, kwargs) if state else module(*args, **kwargs)
            )
        else:
            value = node.target(*args, **kwargs)  # type: ignore[operator]
    node.meta["val"] = value


def fake(mode: FakeTensorMode, tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor's fake under `mode`, all sizes fixed; of one on the meta device, on `device`."""
    if tensor.is_meta:
        size, stride = tensor.size(), tensor.stride()
        return torch.empty_strided(size, stride, dtype=tensor.dtype, device=device)
    return mode.from_tensor(tensor.detach(), static_shapes=True)


class FixedSizes(Exception):
    """A node of the model that cannot be computed from values of other sizes than it was made for.

    Raised by `refresh` alone, so that it is told apart from a wrong node of a pass's own.
    """

    def __init__(self, node: fx.Node, cause: Exception) -> None:
        first = next((t.strip() for t in str(cause).splitlines() if t.strip()), "")
        super().__init__(f"`{node.name}`: {type(cause).__name__}: {first}"[:300])
        self.node = node


def refresh(program: Program) -> None:
    """Recompute values downstream of nodes whose inputs changed, until shapes agree again.

    Raises:
        FixedSizes: where an operation of the model does not take the new sizes.
    """
    changed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if not node.meta.pop("stale", False) and not changed.intersection(node.all_input_nodes):
            continue
        before = described(node.meta.get("val"))
        try:
            set_value(program, node)
        except (RuntimeError, IndexError, ValueError) as cause:
            if node.op != "call_function":
                raise
            raise FixedSizes(node, cause) from cause
        if described(node.meta["val"]) != before:
            changed.add(node)


def described(value: Any) -> Any:
    """A value's dtype and shape as text, symbols by name, so that comparing adds no guard."""
    return pytree.tree_map(
        lambda v: (str(v.dtype), *map(str, v.shape)) if isinstance(v, Tensor) else str(v), value
    )
