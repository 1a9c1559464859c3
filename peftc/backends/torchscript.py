"""TorchScript: the graph scripted, not traced, so that batch and length stay free."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind
from torch.fx.node import map_arg

from peftc.backends.base import Backend, Exported
from peftc.backends.lower import lowered
from peftc.backends.weights import fill
from peftc.capture.normalise import is_check, weight
from peftc.capture.program import Program
from peftc.capture.trace import quiet
from peftc.ground.diagnostics import error
from peftc.ground.files import check_takes

FILE = "model.pt"
aten = torch.ops.aten
# Python's own operations on sizes, and the tracer's names for min and max.
SIZES: dict[str, Callable[..., Any]] = {"sym_max": max, "sym_min": min, "sym_float": float}
PLAIN = {
    operator.getitem,
    operator.add,
    operator.sub,
    operator.mul,
    operator.floordiv,
    operator.mod,
    operator.neg,
}
LOGIC = {
    "__and__": torch.bitwise_and,
    "__or__": torch.bitwise_or,
    "__xor__": torch.bitwise_xor,
}
# Operations that make tensors: their device is that of the first input, not of the trace.
FACTORIES = frozenset({"arange", "zeros", "ones", "full", "empty", "eye", "scalar_tensor"})
LAYOUT = frozenset({"device", "pin_memory", "layout", "memory_format"})


class TorchScript(Backend):
    """`model.pt`: loads with `torch.jit.load`, in Python or C++, without peftc or transformers."""

    kind: ClassVar[str] = "torchscript"
    runner: ClassVar[Path] = Path(__file__).parent / "runners" / "run_torchscript.py"

    def write(self, program: Program, folder: Path, options: Mapping[str, Any]) -> str:
        """Lower, script and save the graph."""
        scripted = script(Lowering(program).run())
        save(scripted, folder / FILE)
        return FILE

    def tensors(self, exported: Exported) -> Mapping[str, Tensor]:
        """The weights in the file, by the graph's names."""
        with quiet():
            module = torch.jit.load(exported.folder / exported.file, map_location="cpu")
        return dict(module.named_buffers())

    def listings(self, program: Program, exported: Exported) -> tuple[list[str], list[str]]:
        """The code of the graph, scripted anew, and that of the file."""
        fill(program)
        with quiet():
            theirs = torch.jit.load(exported.folder / exported.file, map_location="cpu")
        ours = script(Lowering(program).run())
        return ours.code.splitlines(), theirs.code.splitlines()


def save(scripted: torch.jit.ScriptModule, path: Path) -> None:
    """Write the file.

    Raises:
        OSError: where the disk takes no more.
    """
    try:
        with quiet():
            scripted.save(str(path))
    except RuntimeError:
        check_takes(path.parent)
        raise


def script(module: fx.GraphModule) -> torch.jit.ScriptModule:
    """Compile the generated code.

    Raises:
        PeftcError: E404 where TorchScript has no form of an operation.
    """
    try:
        with quiet():
            return torch.jit.script(module)
    except RuntimeError as cause:
        lines = [t.strip() for t in str(cause).splitlines() if t.strip()]
        raise error(
            "E404",
            "TorchScript has no form of this graph",
            notes=tuple(t[:200] for t in lines[:3]),
            help=("export to onnx instead",),
        ) from cause


class Lowering:
    """ATen overloads -> the calls that TorchScript's own frontend knows."""

    def __init__(self, program: Program) -> None:
        self.exported = lowered(program)
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.values: dict[fx.Node, Any] = {}
        self.first: fx.Node | None = None
        self.device: fx.Node | None = None

    def run(self) -> fx.GraphModule:
        """The lowered graph: plain placeholders, weights as attributes, a tensor or a tuple out."""
        specs = {s.arg.name: s for s in self.exported.graph_signature.input_specs}
        nodes = list(self.exported.graph.nodes)
        for node in nodes:
            if node.op == "placeholder" and specs[node.name].kind == InputKind.USER_INPUT:
                self.values[node] = self.graph.placeholder(node.name, type_expr=Tensor)
                self.first = self.first or self.values[node]
        for node in nodes:
            if node.op == "placeholder" and node not in self.values and node.users:
                target = str(specs[node.name].target)
                self.attach(target, weight(self.exported, target).detach())
                self.values[node] = self.graph.get_attr(target)
        for node in nodes:
            if node.op == "call_function" and not is_check(node):
                self.values[node] = self.call(node)
            elif node.op == "output":
                returned = [self.values[n] for n in node.args[0]]
                self.graph.output(tuple(returned) if len(returned) > 1 else returned[0])
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.root, self.graph)

    def attach(self, target: str, value: Tensor) -> None:
        """A weight under its own name, in plain containers."""
        parent = self.root
        *path, last = target.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.register_buffer(last, value)

    def given(self, value: Any) -> Any:
        """Arguments with nodes replaced by their lowered ones."""
        return map_arg(value, lambda n: self.values[n])

    def call(self, node: fx.Node) -> Any:
        """One operation in TorchScript's terms."""
        args, kwargs = self.given(node.args), self.given(node.kwargs)
        target: Any = node.target
        name = getattr(target, "__name__", "")
        if name in SIZES:
            return self.graph.call_function(SIZES[name], args)
        if target in PLAIN:
            return self.graph.call_function(target, args)
        if not isinstance(target, OpOverload):
            raise error("E404", f"TorchScript has no form of `{name or target}`")
        return self.overload(target, args, dict(kwargs))

    def overload(self, target: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """One ATen operation, its overload left to the frontend."""
        namespace, name = target._schema.name.split("::")
        if namespace != "aten":
            raise error("E404", f"TorchScript has no form of `{target}`")
        if name == "sym_size":
            return self.graph.call_method("size", args)
        if name in ("view", "_unsafe_view"):  # another attention kernel gives other strides
            return self.graph.call_function(aten.reshape, args)
        if name == "sym_numel":
            return self.graph.call_method("numel", args)
        if name in ("alias", "detach", "lift_fresh_copy"):
            return args[0]
        if name == "_to_copy":
            dtype = kwargs.get("dtype")
            return self.graph.call_method("to", (args[0], dtype)) if dtype else args[0]
        if name in LOGIC:
            return self.graph.call_function(LOGIC[name], args)
        makes = "device" in kwargs and name in FACTORIES
        kwargs = {k: v for k, v in kwargs.items() if k not in LAYOUT}
        if makes:
            kwargs["device"] = self.input_device()
        if name in FACTORIES:
            return self.graph.call_function(getattr(torch, name), args, kwargs)
        if name.startswith("new_"):
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(getattr(aten, name), args, kwargs)

    def input_device(self) -> fx.Node:
        """The device of the first input."""
        if self.device is None:
            self.device = self.graph.call_function(getattr, (self.first, "device"))
        return self.device
