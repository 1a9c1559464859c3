"""Program -> torch.export.ExportedProgram of the flat graph, pieces inlined, names kept."""

from __future__ import annotations

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from peftc.capture.inputs import SIZES, example_value, sound_sizes
from peftc.capture.program import Program
from peftc.capture.trace import quiet


def lowered(program: Program) -> ExportedProgram:
    """The flat graph, tensors in and tensors out, as ATen operations.

    Parameters keep their names, inserted ones as `peft.<id>.<site>.<tensor>`; every named axis
    of the signature stays free.
    """
    flat = fx.GraphModule(program, program.graph).eval()
    device = next(program.parameters()).device
    inputs = program.signature.inputs
    sizes = sound_sizes(SIZES, program.signature.config)
    values = tuple(example_value(i, sizes, 3).to(device) for i in inputs)
    shapes = tuple(
        {k: Dim.DYNAMIC for k, d in enumerate(i.dims) if isinstance(d, str)} for i in inputs
    )
    with quiet(), torch.no_grad():
        return torch.export.export(flat, values, dynamic_shapes=shapes, strict=False)


def axis_symbols(exported: ExportedProgram, program: Program) -> dict[str, str]:
    """The tracer's symbols by the names of the signature's axes."""
    holders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    given = holders[-len(program.signature.inputs) :]
    return {
        str(size): d
        for node, i in zip(given, program.signature.inputs, strict=True)
        for size, d in zip(node.meta["val"].shape, i.dims, strict=True)
        if isinstance(d, str)
    }
