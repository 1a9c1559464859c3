"""h  ->  [P; h] where no ids stand in front: rows for an image or a sound, all sizes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.piece_name import PieceName
from peftc.capture.program import Program
from peftc.capture.values import refresh
from peftc.dataflow.facts import Facts
from peftc.dataflow.lengthen import lengthened
from peftc.dataflow.site import Site
from peftc.passes.base import END, Pass, add_module, after, call, call_module, current, redirect
from peftc.passes.tasks import task_ids
from peftc.pieces.bank import Bank, members

aten = torch.ops.aten


@dataclass
class InsertRows(Pass):
    """Puts `tokens` trained rows into the stream of a stack that embeds no ids.

    %h  ->  prompt(pad(%h)), in front of its rows or behind the first, which may be a class token;
    reshape(%x, [batch, length, ...])  ->  reshape(%x, [batch, length + tokens, ...]);
    a mask made for the old length gets columns that keep. What reads the stream behind its last
    block reads the real rows alone, at their own places.
    """

    id: str
    site: Site
    end: fx.Node
    piece: Any | Bank  # of a bank, all prompts have one length and place

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"insert {self.target}"

    @property
    def target(self) -> str:
        """The submodule path of the piece."""
        return str(PieceName(self.id, self.site.name))

    def run(self, program: Program) -> None:
        """Lengthen the stream, what is computed from it, and cut it again."""
        h = current(self.site.h)
        found = lengthened(Facts(program), h, self.end)
        prompted = self.prompted(program, h)
        found.axes[prompted] = found.axes.pop(h)
        for node, source, axis, own in found.sizes:
            self.resize(program, node, prompted if source is h else source, axis, own)
        for (mask, axes), readers in found.masks.items():
            fill = 1.0 if mask.meta["val"].dtype == torch.bool else 0.0
            new = mask
            for axis in axes:
                new = self.padded(program, new, axis, fill)
            redirect(mask, new, tuple(readers))
        for node in found.axes.keys() - {prompted}:
            node.meta["stale"] = True
        refresh(program)
        self.cut(program, found.axes)

    def prompted(self, program: Program, h: fx.Node) -> fx.Node:
        """The prompt over fresh rows of h."""
        readers = tuple(h.users)
        add_module(program, self.target, self.piece)
        rows = self.padded(program, h, 1, 0.0)
        tasks = (task_ids(program),) if isinstance(self.piece, Bank) else ()
        with after(rows, *tasks):
            prompted = call_module(program, self.target, (*tasks, rows), self.site.module)
        redirect(h, prompted, readers)
        return prompted

    def resize(self, program: Program, node: fx.Node, source: fx.Node, axis: int, own: int) -> None:
        """Let a reshape or an expansion give as many rows as its input now has."""
        sizes = list(node.args[1])  # type: ignore[arg-type]
        given = sizes[own]
        if isinstance(given, fx.Node):
            with program.graph.inserting_before(node):
                sizes[own] = call(program, aten.sym_size.int, (source, axis), self.site.module)
        elif given != -1:
            sizes[own] = given + self.shape.tokens
        node.args = (node.args[0], sizes)

    def cut(self, program: Program, axes: Mapping[fx.Node, tuple[int, ...]]) -> None:
        """What is no part of the longer stream reads values without the prompt's rows."""
        for node in sorted(n for n in axes if axes[n]):
            outside = tuple(
                n for n in node.users if n not in axes and isinstance(n.meta.get("val"), Tensor)
            )
            outside += tuple(n for n in node.users if n.op == "output")
            if not outside or isinstance(node.meta["val"], list | tuple):
                continue
            short = node
            for axis in axes[node]:
                short = self.without_rows(program, short, axis)
            if node is self.end:
                redirect(node, short, outside)
                continue
            for reader in outside:
                reader.replace_input_with(node, short)

    def without_rows(self, program: Program, node: fx.Node, axis: int) -> fx.Node:
        """`node` without the prompt's rows."""
        path, start = node.meta["module"], self.shape.first
        with after(node):
            rest = call(
                program, aten.slice.Tensor, (node, axis, start + self.shape.tokens, END), path
            )
            if start == 0:
                return rest
            head = call(program, aten.slice.Tensor, (node, axis, 0, start), path)
            return call(program, aten.cat.default, ([head, rest], axis), path)

    @property
    def shape(self) -> Any:
        """A prompt that has the length and place of all."""
        return members(self.piece)[0]

    def padded(self, program: Program, node: fx.Node, axis: int, fill: float) -> fx.Node:
        """`node` with `tokens` times `fill` on an axis, at the prompt's place."""
        path, start = node.meta["module"], self.shape.first
        dims = node.meta["val"].dim()
        pad = [0] * (2 * (dims - axis % dims - 1)) + [self.shape.tokens, 0]
        with after(node):
            if not start:
                return call(program, aten.constant_pad_nd.default, (node, pad, fill), path)
            head = call(program, aten.slice.Tensor, (node, axis, 0, start), path)
            rest = call(program, aten.slice.Tensor, (node, axis, start, END), path)
            new = call(program, aten.constant_pad_nd.default, (rest, pad, fill), path)
            return call(program, aten.cat.default, ([head, new], axis), path)
