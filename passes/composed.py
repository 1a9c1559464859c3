"""%total = add(%base, delta) or mul(%base, delta): where the delta of a piece meets its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from peftc.capture.program import Program, attribute
from peftc.passes.linears import Linear, maker_of, narrowed, parameter_readers
from peftc.pieces.gate import Valve

aten = torch.ops.aten


@dataclass(frozen=True)
class Composed:
    """One piece's delta composed with a value.

    `delta` is what `total` reads: the piece, or its delta behind a constant gate and behind the
    padding to all features of a fused projection. `rows`: the features of `base` that the delta
    has, in its order; None for all.
    """

    piece: fx.Node
    delta: fx.Node
    total: fx.Node
    base: fx.Node
    rows: Tensor | None
    factor: Tensor  # (), or one a feature of the delta: the scale of a sum, and a constant gate

    @property
    def multiplies(self) -> bool:
        """Whether the value is multiplied with the delta; else the delta is added to it."""
        return self.total.target is aten.mul.Tensor

    def replace(self) -> None:
        """Let the readers of the total read the value alone."""
        self.total.replace_all_uses_with(self.base)


def composed(program: Program, piece: fx.Node) -> Composed | None:
    """Where the delta of a piece meets a value; None where anything else happens to it."""
    delta, rows, factor, padded = piece, None, torch.tensor(1.0, dtype=torch.float64), None
    while len(delta.users) == 1:
        reader = next(iter(delta.users))
        if reader.op == "call_module" and reader.args == (delta,) and rows is None:
            gate = attribute(program, str(reader.target))
            if not isinstance(gate, Valve) or gate.reads:
                return None
            factor = factor * gate.g.detach().reshape(() if len(gate.g) == 1 else (-1,))
        elif reader.target is aten.constant_pad_nd.default and rows is None:
            (start, _), padded = reader.args[1:]  # type: ignore[misc]
            rows = torch.arange(start, start + delta.meta["val"].shape[-1])  # type: ignore[operator]
        elif reader.target is aten.index_select.default and rows is not None:
            index = attribute(program, str(reader.args[2].target))  # type: ignore[union-attr]
            rows = torch.stack([(index == k).nonzero()[0, 0] for k in range(len(rows))])
        else:
            return met(piece, delta, reader, rows, factor, padded)
        delta = reader
    return None


def met(
    piece: fx.Node,
    delta: fx.Node,
    total: fx.Node,
    rows: Tensor | None,
    factor: Tensor,
    padded: object,
) -> Composed | None:
    """The node that reads a delta as a sum or a product with it."""
    if total.target not in (aten.add.Tensor, aten.mul.Tensor) or total.args[1] is not delta:
        return None
    base = total.args[0]
    neutral = 1.0 if total.target is aten.mul.Tensor else 0.0
    if not isinstance(base, fx.Node) or padded not in (None, neutral):
        return None
    factor = factor * float(total.kwargs.get("alpha", 1.0))  # type: ignore[arg-type]
    return Composed(piece, delta, total, base, rows, factor)


@dataclass(frozen=True)
class Made:
    """The output features `rows` of a frozen linear, which are what a delta is composed with."""

    linear: Linear
    rows: Tensor

    def weight_is_free(self, piece: fx.Node) -> bool:
        """Whether the linear and the piece alone read these rows of the weight."""
        linear = self.linear
        axis = 1 if linear.transposed else 0
        return free(linear.weight, self.rows, axis, (linear.weight, piece))

    def bias_is_free(self, piece: fx.Node) -> bool:
        """Whether there is a bias of which the linear and the piece alone read these rows."""
        bias = self.linear.bias
        return (
            bias is not None and bias.op == "get_attr" and free(bias, self.rows, 0, (bias, piece))
        )


def made_by(found: Composed) -> Made | None:
    """The linear whose output the delta is composed with, where nothing else reads that output."""
    maker = maker_of(found.base)
    if maker is None:
        return None
    linear, part = maker
    rows = torch.arange(width_of(linear.node))[part]
    rows = rows if found.rows is None else rows[found.rows]
    if linear.node is not found.base:  # one part of its split
        split: fx.Node = found.base.args[0]  # type: ignore[assignment]
        same = [n for n in split.users if n.args[1] == found.base.args[1]]
        if same != [found.base] or list(linear.node.users) != [split]:
            return None
    return Made(linear, rows) if only_for(found.base, found) else None


def only_for(node: fx.Node, found: Composed) -> bool:
    """Whether a value is read by the total and, whole or in part, by the piece alone."""
    own = (found.total, found.piece)
    return all(
        reader in own
        or (
            reader.target in (aten.slice.Tensor, aten.index_select.default)
            and all(n is found.piece for n in reader.users)
        )
        for reader in node.users
    )


def width_of(node: fx.Node) -> int:
    """The number of features of a value."""
    return int(node.meta["val"].shape[-1])


def free(parameter: fx.Node, rows: Tensor, axis: int, own: tuple[fx.Node, ...]) -> bool:
    """Whether nothing but `own` reads any of these rows of a parameter."""
    others = [n for n in parameter_readers(parameter) if n not in own]
    size = int(parameter.meta["val"].shape[axis])
    read = [r for n in others for reader, r in narrowed(n, range(size), axis)
            if reader not in own and reader.users]  # fmt: skip
    apart = not read or set(rows.tolist()).isdisjoint(k for r in read for k in r)
    return apart and len(parameter.users) == 1
