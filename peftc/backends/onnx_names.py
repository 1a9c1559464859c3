"""Values and axes of an ONNX graph under the names that they have in the graph it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.export import ExportedProgram


def name_values(model: Any, decomposed: ExportedProgram, exported: ExportedProgram) -> None:
    """Let each value have the name of the node of `exported` that it comes from.

    The exporter takes the graph apart first and numbers the parts anew: its `add_10` is another
    sum than the graph's.
    """
    ours = {node.name for node in exported.graph.nodes}
    names = {}
    for node in decomposed.graph.nodes:  # of several parts of one node the last is its value
        if node.op == "call_function" and (origin := origin_of(node, id(exported.graph))):
            names[origin] = node.name
    given = {part: origin for origin, part in names.items()}
    taken = ours | given.keys()
    made = [v for node in model.graph for v in node.outputs if not v.is_graph_output()]
    parts = {value: value.name for value in made if value.name in taken}
    for k, value in enumerate(parts):  # first out of one another's way
        value.name = f"part_{k}"
    for value, part in parts.items():
        value.name = given.get(part, value.name)


def origin_of(node: fx.Node, graph: int) -> str:
    """The name of the node that one was made of, in the graph of that identity; "" if none."""
    sources = node.meta.get("from_node")
    while sources:
        if sources[-1].graph_id == graph:
            return sources[-1].name
        sources = sources[-1].from_node
    return ""


def name_axes(model: Any, names: Mapping[str, str]) -> None:
    """Axes of inputs, outputs and values under the signature's names, not the tracer's."""
    import onnx_ir as ir

    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    renamed(d.value, names) if isinstance(d, ir.SymbolicDim) else d
                    for d in value.shape
                ]
            )


def renamed(axis: str | None, names: Mapping[str, str]) -> str | None:
    """An axis, or an expression over axes, with symbols by name."""
    for symbol, name in sorted(names.items(), key=lambda item: -len(item[0])):
        axis = axis.replace(symbol, name) if axis else axis
    return axis
