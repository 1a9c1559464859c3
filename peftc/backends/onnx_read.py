"""What an ONNX file holds: its weights, each read when it is asked for, and its graph as text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftc.backends.base import Exported
from peftc.capture.stored import Stored

# The names that ONNX and torch have for what a weight can be of.
DTYPES = {
    "DOUBLE": "float64", "FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16",
    "INT64": "int64", "INT32": "int32", "INT16": "int16", "INT8": "int8", "UINT8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


def lines_of(model: Any, weights: Collection[str]) -> list[str]:
    """What a model computes, as text: its nodes, and its constants that are no weights."""
    import onnx
    import onnx_ir as ir

    constants = [
        f"{name}: {value.dtype} {value.shape} {value.tobytes().hex()}"
        for name, value in ((n, v.const_value) for n, v in model.graph.initializers.items())
        if name not in weights
    ]
    nodes = [onnx.printer.to_text(ir.serde.serialize_node(node)) for node in model.graph]
    return [*sorted(constants), *nodes]


def initializers(exported: Exported) -> Mapping[str, Any]:
    """The constants of a graph file; none of those beside it is read."""
    import onnx_ir as ir

    return ir.load(exported.folder / exported.file).graph.initializers


def place_of(value: Any) -> Stored | None:
    """Where an initializer's bytes lie; None where they are in the graph file itself."""
    import onnx_ir as ir

    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    path = Path(tensor.base_dir, tensor.location)
    dtype, shape = getattr(torch, DTYPES[tensor.dtype.name]), tuple(tensor.shape.numpy())
    length = dtype.itemsize * torch.Size(shape).numel()
    return Stored(path, dtype, shape, tensor.offset or 0, length)


@dataclass(frozen=True)
class Weights(Mapping[str, torch.Tensor]):
    """Initializers as tensors, each read when it is asked for."""

    initializers: Mapping[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one."""
        value = self.initializers[name]
        if (place := place_of(value)) is not None:
            return place.read()
        tensor = value.const_value
        dtype = getattr(torch, DTYPES[tensor.dtype.name])
        shape = tuple(tensor.shape.numpy())
        data = bytearray(tensor.tobytes())
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape)

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self.initializers)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.initializers)
