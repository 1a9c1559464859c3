"""h -> [P; h]: a prompt's rows over its dummy tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from peftc.capture.piece_name import PieceName
from peftc.capture.program import Program
from peftc.capture.values import refresh
from peftc.passes.base import Pass, add_module, after, call, call_module, current, redirect
from peftc.passes.lengthen import Lengthen
from peftc.passes.tasks import task_ids
from peftc.pieces.bank import Bank

aten = torch.ops.aten


@dataclass
class InsertPrompt(Pass):
    """Puts the trained rows of one prompt where `Lengthen` made room for them.

    %h  ->  peft.<id>.<site>(%h): rows `first` to `first + tokens` of %h are the prompt's.

    %h is the embedding's output as earlier insertions at it have left it, so that they act on
    the tokens before them, as the order of the spec says.
    """

    id: str
    room: Lengthen
    piece: Any | Bank  # of a bank, all prompts have one length and place

    @property
    def target(self) -> str:
        """The submodule path of the piece."""
        return str(PieceName(self.id, self.room.embedding.site.name))

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"insert {self.target}"

    def run(self, program: Program) -> None:
        """Let everything that reads the embedding read it with the prompt."""
        h = current(self.room.embedding.site.h)
        readers = tuple(h.users)
        redirect(h, self.prompted(program, h), readers)
        refresh(program)

    def prompted(self, program: Program, h: fx.Node) -> fx.Node:
        """The prompt over its rows of h, which may be (length, batch, width) as well."""
        add_module(program, self.target, self.piece)
        path = self.room.embedding.site.module
        tasks = (task_ids(program),) if isinstance(self.piece, Bank) else ()
        with after(h):
            if self.room.longer_axis(h) != 0:
                return call_module(program, self.target, (*tasks, h), path)
            rows = call(program, aten.transpose.int, (h, 0, 1), path)
            rows = call_module(program, self.target, (*tasks, rows), path)
            return call(program, aten.transpose.int, (rows, 0, 1), path)
