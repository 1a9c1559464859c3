"""add(%h, piece(%x), alpha=s)  ->  add(%h, piece'(%x)): constants folded into a piece's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from peftc.capture.piece_name import Part, piece_name
from peftc.capture.program import Program, attribute
from peftc.methods.pipe.module import Pipe
from peftc.methods.vector.module import Vector
from peftc.passes.base import Keeps, Pass, add_module, after, call, call_module, pieces
from peftc.pieces.base import Piece
from peftc.pieces.gate import Gate, Valve

aten = torch.ops.aten


@dataclass
class FoldScale(Pass):
    """Folds the scale of a sum, the factors of a gate and the scale steps of a pipe.

    gate(%h, piece(%x)), with its trained g  ->  add(mul(%h, 1 - g), piece'(%x)), piece' = g piece
    A gate that reads something else is no constant.
    Left as they are where a piece has no parameters that come last.
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    def run(self, program: Program) -> None:
        """Scale the last layer of each piece, and drop what scaled it."""
        for _, pipe in pieces(program, Pipe):
            pipe.fold_scales()
        for node, valve in pieces(program, Valve):
            if not valve.reads:
                self.scaled(program, node, valve.g.detach())
        for node, piece in pieces(program, Piece):
            total, delta = read_by(node)
            if total is None or total.target is not aten.add.Tensor:
                continue
            alpha = total.kwargs.get("alpha", 1)
            if alpha != 1 and total.args[1] is delta and piece.scale_output(torch.tensor(alpha)):
                total.kwargs = {}
        for node, gate in pieces(program, Gate):
            if gate.reads or isinstance(gate, Valve):
                continue
            self.open_gate(program, node, gate.g.detach())
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()

    def scaled(self, program: Program, node: fx.Node, g: Tensor) -> None:
        """G piece(%x)  ->  piece'(%x)."""
        delta = node.args[0]
        if not isinstance(delta, fx.Node) or delta.op != "call_module" or len(delta.users) > 1:
            return
        piece = attribute(program, str(delta.target))
        factor = g.reshape(()) if len(g) == 1 else g
        if isinstance(piece, Piece) and piece.scale_output(factor):
            node.replace_all_uses_with(delta)
            program.graph.erase_node(node)

    def open_gate(self, program: Program, node: fx.Node, g: Tensor) -> None:
        """A gate as a product with a vector and a sum, where its piece can take the factor."""
        h, delta = node.args
        name = piece_name(node.target)
        if name is None or not isinstance(h, fx.Node) or not isinstance(delta, fx.Node):
            return
        path = node.meta["module"]
        piece = attribute(program, str(delta.target)) if delta.op == "call_module" else None
        factor = g.reshape(()) if len(g) == 1 else g
        if not isinstance(piece, Piece) or len(delta.users) > 1 or not piece.scale_output(factor):
            return
        width: int = node.meta["val"].shape[-1]
        kept = Vector(width)
        kept.l = nn.Parameter((1 - g).expand(width).clone())
        target = str(name.of(Part.KEPT))
        add_module(program, target, kept)
        with after(h, delta):
            vector = call_module(program, target, (), path)
            product = call(program, aten.mul.Tensor, (h, vector), path)
            total = call(program, aten.add.Tensor, (product, delta), path)
        node.replace_all_uses_with(total)
        program.graph.erase_node(node)


def read_by(node: fx.Node) -> tuple[fx.Node | None, fx.Node]:
    """What alone reads a delta, behind the padding of a fused projection, and what it reads."""
    delta = node
    while len(delta.users) == 1:
        reader = next(iter(delta.users))
        if reader.target not in (aten.constant_pad_nd.default, aten.index_select.default):
            return reader, delta
        delta = reader
    return None, delta
