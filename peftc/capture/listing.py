"""A Program as text: one line a node, stable from run to run, for reading and for differences."""

from __future__ import annotations

import difflib
import hashlib
import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from peftc.capture.program import Program

NAME, DEVICE = re.compile(r"%(\w+)"), re.compile(r"\b(?:cpu|cuda|mps|xpu)(?::\d+)?\b")
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


def listing(program: Program) -> str:
    """The graph, one node a line: `%linear = aten.linear(%x, %w, %b) : f32[batch, 24]  @path`."""
    symbols = symbol_names(program)
    return "\n".join(line(node, symbols) for node in program.graph.nodes) + "\n"


def difference(before: str, after: str) -> list[str]:
    """The lines that two listings do not share, marked - and +, in the order of the graph."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [text for text in lines if not text.startswith(("---", "+++", "@@"))]


def fingerprint(program: Program, *, pieces: bool = True) -> str:
    """SHA-256 of the graph as it is on every device: nodes by number, no devices, no copies.

    Which strides a kernel gives depends on the device, and with them where copies stand and how
    the tracer counts its nodes. With `pieces`, what modules hold beside their tensors counts, and
    how the graph is called.
    """
    symbols, numbers, lines = symbol_names(program), dict[str, str](), []
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.clone.default:
            numbers[node.name] = numbers[node.args[0].name]
            continue
        numbers[node.name] = f"%{len(lines)}"
        name = str(node.target) if node.op == "placeholder" else ""
        text = NAME.sub(lambda m: numbers[m[1]], line(node, symbols))
        if pieces and node.op == "call_module":
            name = contents(program.get_submodule(str(node.target)))
        lines.append(f"{DEVICE.sub('', text)} {name}\n")
    if pieces:
        given = program.signature
        losses = {None: given.loss} | {n: t.loss for n, t in given.tasks.items()}
        lines.append(f"{given.inputs} {given.outputs} {losses} {given.members}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def contents(module: nn.Module) -> str:
    """What a module computes, its tensors left aside: `Bottleneck(act=gelu), down Linear(...)`."""
    return ", ".join(
        f"{name} {type(m).__name__}({settings(m)})".lstrip() for name, m in module.named_modules()
    )


def settings(module: nn.Module) -> str:
    """What a module says of itself, or its public values by name."""
    if type(module).extra_repr is not nn.Module.extra_repr:
        return module.extra_repr()
    values = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    return ", ".join(f"{k}={setting(v)}" for k, v in sorted(values.items()))


def setting(value: Any) -> str:
    """A value of a module as text that is the same in every process.

    Raises:
        TypeError: for a value without such a text: the module has to say it by `extra_repr`.
    """
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(setting, value))}]"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    name = getattr(value, "__name__", "<")
    if callable(value) and not name.startswith("<"):
        return name
    raise TypeError(f"{type(value).__name__} has no text of its own")


def line(node: fx.Node, symbols: dict[str, str]) -> str:
    """One node as text."""
    given = ", ".join(
        [*map(argument, node.args), *(f"{k}={argument(v)}" for k, v in node.kwargs.items())]
    )
    if node.op == "placeholder":
        text = f"%{node.name} = input"
    elif node.op == "output":
        return f"return {argument(node.args[0])}"
    elif node.op == "get_attr":
        text = f"%{node.name} = weight {node.target}"
    else:
        target = node.target if node.op == "call_module" else operation(node)
        text = f"%{node.name} = {target}({given})"
    place = f"  @{node.meta['module']}" if node.meta.get("module") else ""
    return f"{text} : {described(node.meta.get('val'), symbols)}{place}"


def operation(node: fx.Node) -> str:
    """The name of a function node's operation, default overloads left out."""
    name = str(node.target) if "." in str(node.target) else getattr(node.target, "__name__", "?")
    if name.startswith("<"):
        name = getattr(node.target, "__name__", name)
    return name.removesuffix(".default")


def argument(value: Any) -> str:
    """An argument as text."""
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(argument, value))}]"
    return str(value)


def described(value: Any, symbols: dict[str, str]) -> str:
    """A value's dtype and shape, symbols by the names of the input axes."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        sizes = ", ".join(renamed(d, symbols) for d in value.shape)
        return f"{DTYPES.get(dtype, dtype)}[{sizes}]"
    if isinstance(value, list | tuple):
        return f"({', '.join(described(v, symbols) for v in value)})"
    return renamed(value, symbols)


def renamed(size: Any, symbols: dict[str, str]) -> str:
    """A size or an expression over sizes, symbols by name."""
    text = str(size)
    for symbol, name in symbols.items():
        text = text.replace(symbol, name)
    return text


def symbol_names(program: Program) -> dict[str, str]:
    """The tracer's symbols by the names of the input axes, longer symbols first."""
    names: dict[str, str] = {}
    holders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    for i in program.signature.inputs:
        for size, dim in zip(holders[i.name].meta["val"].shape, i.dims, strict=True):
            if isinstance(dim, str):
                names[str(size)] = dim
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))
