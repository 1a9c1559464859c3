"""prefix(%k, %v) with kv_heads keys  ->  with one key a head: nothing of it computed when run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftc.capture.program import Program
from peftc.methods.prefix.module import Prefix
from peftc.passes.base import Keeps, Pass, pieces


@dataclass
class FoldPrefix(Pass):
    """Repeats the keys and values of a prefix over the heads that share them, once.

    For a prefix that has tensors of its own: after `FoldReparam` all have.
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    def run(self, program: Program) -> None:
        """Spread each prefix."""
        for node, prefix in pieces(program, Prefix):
            if len(node.args) == 2 and prefix.key.dim() == 3:
                prefix.spread()
