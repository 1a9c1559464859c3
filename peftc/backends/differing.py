"""Where an exported file leaves its graph: the first node whose value differs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from peftc.backends.base import Exported, backend
from peftc.backends.export import FACTS, folded_for
from peftc.backends.lower import lowered
from peftc.backends.process import run
from peftc.backends.weights import fill
from peftc.capture.normalise import weight
from peftc.capture.program import Program
from peftc.capture.walk import walk
from peftc.ground.output.staging import room_in

PROBED = "peftc.probed.onnx"


def first_difference(
    graph: Program, exported: Exported, values: Mapping[str, Tensor], tolerance: float
) -> str:
    """The first node, in the graph's order, where the file's numbers are others; "" if none is.

    An ONNX file is run once more with its inner values as outputs, those that have a node's name.
    Of other formats the weights are compared: the node is the first that reads another one. So it
    is where an ONNX file makes one value of several nodes.
    """
    fold = exported.facts["fold"]
    merge = exported.facts.get("merge", fold == "auto")
    program = folded_for(graph, backend(exported.kind), fold, merge)
    fill(program)
    flat = lowered(program)
    if exported.kind != "onnx":
        return by_weights(flat, exported)
    recorder = Recorder(flat)
    device = next(program.parameters()).device
    recorder.run(*placeholders(flat, [v.to(device) for v in values.values()]))
    found, agreeing = recorder.found, set[str]()
    for name, got in probed(exported, found, values).items():
        difference = distance(found[name], got)
        if not difference <= tolerance * max(1.0, found[name].abs().max().item()):
            cause = by_weights(flat, exported, between(flat, agreeing, name))
            first = f"{cause}: {name}" if cause else described(flat, name)
            return f"{first} differs by {difference:.1e}"
        agreeing.add(name)
    return by_weights(flat, exported)


class Recorder(fx.Interpreter):
    """Runs a flat graph and keeps every floating tensor that a node gives, by the node's name."""

    def __init__(self, flat: ExportedProgram) -> None:
        super().__init__(flat.graph_module)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        with torch.no_grad():
            value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and n.op == "call_function":
            self.found[n.name] = value.cpu()
        return value


def placeholders(flat: ExportedProgram, inputs: list[Tensor]) -> list[Any]:
    """The arguments of a flat graph: its weights, then the inputs."""
    given = iter(inputs)
    return [
        next(given) if s.kind == InputKind.USER_INPUT else weight(flat, str(s.target)).detach()
        for s in flat.graph_signature.input_specs
    ]


def probed(
    exported: Exported, found: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values of an ONNX file that have names in `found`, in the file's order."""
    import onnx

    # Beside the export, since a runtime refuses weights that lie in another folder.
    with room_in(exported.folder.resolve().parent) as folder:
        for name in (*exported.files, FACTS):
            if name != exported.file and not (folder / name).exists():
                borrow(exported.folder / name, folder / name)
        model = onnx.load(exported.folder / exported.file, load_external_data=False)
        outputs = {o.name for o in model.graph.output}
        typed = {v.name: v for v in model.graph.value_info}
        made = [o for node in model.graph.node for o in node.output]
        names = [n for n in made if n in found and n in typed and n not in outputs]
        model.graph.output.extend(typed[n] for n in names)
        onnx.save(model, folder / PROBED)
        cases = {f"0/{n}": v.numpy() for n, v in values.items()}
        probe = replace(exported, folder=folder, file=PROBED)
        (got,) = run(probe, cases, 1, names) if names else ([],)
    shaped = zip(names, got, strict=True)
    return {n: t for n, t in shaped if t.shape == found[n].shape}


def borrow(source: Path, target: Path) -> None:
    """The file under another name: a hard link, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; infinities, and what is no number in both, are equal."""
    ours, theirs = ours.double(), theirs.double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return torch.where(same, 0.0, (ours - theirs).abs()).max().item() if ours.numel() else 0.0


def described(flat: ExportedProgram, name: str) -> str:
    """A node with its operation and the weights that it reads."""
    targets = {s.arg.name: s.target for s in flat.graph_signature.input_specs}
    node = next(n for n in flat.graph.nodes if n.name == name)
    weights = [str(targets[n.name]) for n in node.all_input_nodes if targets.get(n.name)]
    operation = str(node.target).removesuffix(".default")
    return f"{name} = {operation}" + (f" ({', '.join(weights)})" if weights else "")


def between(flat: ExportedProgram, agreeing: set[str], name: str) -> set[str]:
    """The nodes that a value is made of, back to values that agree."""
    last = next(n for n in flat.graph.nodes if n.name == name)
    behind = walk([last], lambda n: [s for s in n.all_input_nodes if s.name not in agreeing])
    return {name, *(n.name for n in behind)}


def by_weights(flat: ExportedProgram, exported: Exported, among: set[str] | None = None) -> str:
    """The first node, perhaps only of some, that reads a weight which the file has otherwise."""
    targets = {s.arg.name: str(s.target) for s in flat.graph_signature.input_specs if s.target}
    theirs = backend(exported.kind).tensors(exported)
    for node in flat.graph.nodes:
        if among is not None and node.name not in among:
            continue
        for source in node.all_input_nodes:
            name = targets.get(source.name, "")
            got = theirs.get(name)
            if got is None:
                continue
            ours = weight(flat, name).detach().cpu()
            if ours.shape != got.shape or distance(ours, got) > 0:
                return f"{described(flat, node.name)} reads another {name}"
    return ""
