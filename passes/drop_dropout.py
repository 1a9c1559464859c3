"""dropout(%x)  ->  %x and sdpa(..., %rate)  ->  sdpa(..., 0.0), for graphs that are only run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftc.capture.attention_dropout import DropoutRate
from peftc.capture.program import Program
from peftc.passes.base import Keeps, Pass, pieces


@dataclass
class DropDropout(Pass):
    """Removes every dropout of the graph; those inside pieces are idle in eval mode."""

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    def run(self, program: Program) -> None:
        """Let the readers of each dropout read its input."""
        for node, _ in pieces(program, nn.Dropout):
            node.replace_all_uses_with(node.all_input_nodes[0])
            program.graph.erase_node(node)
        for node, _ in pieces(program, DropoutRate):
            for reader in list(node.users):
                reader.args = tuple(0.0 if a is node else a for a in reader.args)
            program.graph.erase_node(node)
        program.delete_all_unused_submodules()
