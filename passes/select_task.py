"""A graph of many tasks  ->  the graph of one: its pieces, its head, and no task_ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from peftc.capture.program import Program, drop_unused
from peftc.capture.tasks import output_name
from peftc.capture.values import refresh
from peftc.passes.base import Keeps, Pass, call, pieces
from peftc.passes.tasks import task_ids
from peftc.pieces.bank import Bank, HiddenScores, Lengths, LongerMask

aten = torch.ops.aten
BETWEEN = (aten.constant_pad_nd.default, aten.index_select.default)  # a bank and its sum


@dataclass
class SelectTask(Pass):
    """%y = bank(%task_ids, %x)  ->  %y = piece(%x), for the pieces of one task.

    Masks and shifts that differed from row to row become the task's own; what other tasks need
    is gone. The outputs for rows of the task stay what they were.
    """

    task: str
    keeps: ClassVar[Keeps] = Keeps.NOTHING

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"select task {self.task}"

    def run(self, program: Program) -> None:
        """Specialise every bank, then the outputs and the inputs."""
        signature = program.signature
        one = signature.for_task(self.task)
        for node, bank in pieces(program, Bank):
            self.specialise(program, node, bank)
        for node, lengths in pieces(program, Lengths):
            self.settle(program, node, lengths, list(signature.tasks).index(self.task))
        names = [o.name for o in signature.outputs]
        output = program.graph.output_node()
        wanted = [output_name(o.name, self.task, signature) for o in one.outputs]
        output.args = (tuple(output.args[0][names.index(n)] for n in wanted),)  # type: ignore[index]
        drop_unused(program.graph)
        if len(signature.inputs) != len(one.inputs):
            program.graph.erase_node(task_ids(program))
        refresh(program)
        tasks = {self.task: one}
        program.signature = replace(
            signature, inputs=one.inputs, outputs=one.outputs, structure=one.structure, tasks=tasks
        )
        program.delete_all_unused_submodules()

    def specialise(self, program: Program, node: fx.Node, bank: Bank) -> None:
        """One bank becomes the task's piece, and its scale the sum's."""
        program.set_submodule(str(node.target), bank.of(self.task))
        node.args = node.args[1:]
        node.meta["stale"] = True
        if bank.scale is None:
            return
        scale = float(bank.scale[bank.tasks.index(self.task)])
        add = node
        while add is node or add.op == "call_module" or add.target in BETWEEN:
            add = next(iter(add.users))
        if scale != 1:
            add.kwargs = {**add.kwargs, "alpha": scale}

    def settle(self, program: Program, node: fx.Node, lengths: Lengths, index: int) -> None:
        """What rows of different lengths needed becomes what one length needs."""
        given: fx.Node = node.args[1]  # type: ignore[assignment]
        tokens, path = lengths.sizes[index], node.meta["module"]
        new = given
        with program.graph.inserting_before(node):
            if isinstance(lengths, LongerMask):
                keep = 1.0 if given.meta["val"].dtype == torch.bool else 0.0
                pad = (given, [tokens, 0], keep)
                new = call(program, aten.constant_pad_nd.default, pad, path)
            elif not isinstance(lengths, HiddenScores):
                new = call(program, aten.add.Tensor, (given, tokens), path)
        for reader in list(node.users):
            reader.replace_input_with(node, new)
            reader.meta["stale"] = True
        program.graph.erase_node(node)
