"""A Triton model repository: NAME/config.pbtxt and NAME/1/, the files as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import torch

from peftc.capture.program import Input, Output, Signature
from peftc.ground.diagnostics import error

CONFIG, VERSION = "config.pbtxt", "1"
BATCH, LARGEST = "batch", 32
# The formats that Triton has a backend for; TorchScript has no names for what a graph returns.
BACKENDS = {"onnx": "onnxruntime_onnx", "torchscript": "pytorch_libtorch"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TYPES = {
    torch.int64: "TYPE_INT64", torch.int32: "TYPE_INT32", torch.bool: "TYPE_BOOL",
    torch.float32: "TYPE_FP32", torch.float16: "TYPE_FP16", torch.bfloat16: "TYPE_BF16",
    torch.float64: "TYPE_FP64",
}  # fmt: skip


def check_layout(kind: str, name: str) -> None:
    """Refuse a format or a name that Triton does not take.

    Raises:
        PeftcError: E409.
    """
    if kind not in BACKENDS:
        raise error(
            "E409",
            f"Triton has no backend for {kind}",
            help=(f"--layout triton takes: {', '.join(BACKENDS)}",),
        )
    if not NAME.fullmatch(name):
        raise error(
            "E409",
            f"`{name}` cannot be the name of a model in Triton",
            help=("letters, digits, dots and dashes: --name reviews",),
        )


def config(
    kind: str, name: str, file: str, signature: Signature, dtypes: Sequence[torch.dtype]
) -> str:
    """The model's config.pbtxt; `dtypes` are those of the outputs.

    Where every tensor has the batch as its first axis Triton adds and splits batches itself, and
    the dims are without it; otherwise `max_batch_size` is 0 and dims are whole.
    """
    ends: list[Input | Output] = [*signature.inputs, *signature.outputs]
    batched = all(e.dims and e.dims[0] == BATCH for e in ends)
    numbered = kind == "torchscript"
    lines = [
        f"name: {json.dumps(name)}",
        f"platform: {json.dumps(BACKENDS[kind])}",
        f"default_model_filename: {json.dumps(file)}",
        f"max_batch_size: {LARGEST if batched else 0}",
    ]
    for k, i in enumerate(signature.inputs):
        lines += tensor("input", i, i.dtype, batched, k if numbered else None)
    for k, (o, dtype) in enumerate(zip(signature.outputs, dtypes, strict=True)):
        lines += tensor("output", o, dtype, batched, k if numbered else None)
    if batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def tensor(
    field: str, end: Input | Output, dtype: torch.dtype, batched: bool, number: int | None
) -> list[str]:
    """One input or output: TorchScript's are found by a number at the end of the name."""
    name = end.name.replace(".", "_") if number is not None else end.name
    dims = end.dims[1:] if batched else end.dims
    text = ", ".join(str(d) if isinstance(d, int) else "-1" for d in dims)
    shape = [f"  dims: [ {text} ]"]
    if not dims:  # a value a row has the shape [batch], which Triton writes so
        shape = ["  dims: [ 1 ]", "  reshape { shape: [ ] }"]
    return [
        f"{field} {{",
        f"  name: {json.dumps(name if number is None else f'{name}__{number}')}",
        f"  data_type: {TYPES[dtype]}",
        *shape,
        "}",
    ]
