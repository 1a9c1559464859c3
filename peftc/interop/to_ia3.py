"""Rescaling vectors of a graph as IA3 tensors of PEFT: (out, 1) or (1, in)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.program import Program, attribute
from peftc.interop.common import PREFIX, cannot
from peftc.interop.to_lora import is_piece
from peftc.interop.to_peft import task_type
from peftc.interop.written import Written, base_weights, options
from peftc.methods.vector.module import Vector
from peftc.passes.linears import Linear, linear_of, maker_of
from peftc.rewrite.applied import Applied

aten = torch.ops.aten
WRITES = (Vector,)


def write(program: Program, applied: Applied, pieces: list[tuple[fx.Node, Any]]) -> Written:
    """A vector a module; those at parts of one fused linear are one, with ones elsewhere."""
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    transposed = False
    for node, piece in pieces:
        base, product, rows = multiplied(node)
        maker = maker_of(base) if len(base.users) == 1 or rows is not None else None
        if maker is not None:
            linear, part = maker
            width = attribute(program, str(linear.weight.target)).shape[int(linear.transposed)]
            path = linear.node.meta["module"]
            whole = outputs.setdefault(path, torch.ones(width, dtype=piece.l.dtype))
            whole[rows or part] *= piece.l.detach().cpu()
            transposed |= linear.transposed
            continue
        readers = linears_reading(product)
        if not readers:
            raise cannot(f"{node.target} scales neither what a linear gives nor what it reads")
        for linear in readers:
            inputs[linear.node.meta["module"]] = piece.l.detach()
            transposed |= linear.transposed
    if both := outputs.keys() & inputs.keys():
        raise cannot(f"{min(both)} is scaled at both ends")
    task = task_type(program, applied)
    targets = {*outputs, *inputs}
    tensors, more = base_weights(program, applied, task, PREFIX, ())
    tensors |= {f"{PREFIX}{p}.ia3_l": v[:, None] for p, v in outputs.items()}
    tensors |= {f"{PREFIX}{p}.ia3_l": v[None, :] for p, v in inputs.items()}
    config = options(
        "IA3", task, target_modules=sorted(targets), feedforward_modules=sorted(inputs),
        fan_in_fan_out=transposed, init_ia3_weights=True, **more,
    )  # fmt: skip
    return Written(config, tensors, lambda other: True)


def multiplied(node: fx.Node) -> tuple[fx.Node, fx.Node, slice | None]:
    """(the value before any scaling, the product, the features of it) that a vector scales."""
    product, rows = next(iter(node.users)), None
    if product.target is aten.constant_pad_nd.default:
        start = product.args[1][0]  # type: ignore[index]
        rows = slice(start, start + node.meta["val"].shape[-1])  # type: ignore[operator]
        product = next(iter(product.users))
    if len(node.users) != 1 or product.target is not aten.mul.Tensor:
        raise cannot(f"{node.target} is not multiplied with one value")
    base: Any = product.args[0]
    while base.target is aten.mul.Tensor and is_piece(base.args[1]):
        base = base.args[0]
    return base, product, rows


def linears_reading(node: fx.Node) -> list[Linear]:
    """The linears that read a value; none where anything else reads it too."""
    found = []
    for reader in node.users:
        if reader.target is aten.reshape.default and len(reader.users) == 1:  # x W on flat rows
            reader = next(iter(reader.users))
            reader = next(iter(reader.users)) if len(reader.users) == 1 else reader
        linear = linear_of(reader)
        if linear is None or linear.x is not node:
            return []
        found.append(linear)
    return found
