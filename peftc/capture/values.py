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
    mode = fake_mode(program)
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
    # Without the Python dispatcher some kernels would fix free sizes to those of the example.
    with mode, enable_python_dispatcher(), torch.no_grad():
        if node.op == "get_attr":
            value = fake(mode, attribute(program, str(node.target)))
        elif node.op == "call_module":
            module = attribute(program, str(node.target))
            state = dict(module.named_parameters()) | dict(module.named_buffers())
            state = {n: fake(mode, t) for n, t in state.items()}
            value = (
                functional_call(module, state, args, kwargs) if state else module(*args, **kwargs)
            )
        else:
            value = node.target(*args, **kwargs)  # type: ignore[operator]
    node.meta["val"] = value


def fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """The tensor's fake under `mode`, all sizes fixed, on the device where activations live."""
    return mode.from_tensor(tensor.detach(), static_shapes=True)


def refresh(program: Program) -> None:
    """Recompute values downstream of nodes whose inputs changed, until shapes agree again."""
    changed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if not node.meta.pop("stale", False) and not changed.intersection(node.all_input_nodes):
            continue
        before = described(node.meta.get("val"))
        set_value(program, node)
        if described(node.meta["val"]) != before:
            changed.add(node)


def described(value: Any) -> Any:
    """A value's dtype and shape as text, symbols by name, so that comparing adds no guard."""
    return pytree.tree_map(
        lambda v: (str(v.dtype), *map(str, v.shape)) if isinstance(v, Tensor) else str(v), value
    )
