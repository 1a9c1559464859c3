"""Frozen parameters of the base model become trainable, on storage of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peftc.capture.program import Program
from peftc.capture.stored import own_copy
from peftc.passes.base import Keeps, Pass, set_parameter


@dataclass
class Unfreeze(Pass):
    """parameter (frozen, the model's storage)  ->  parameter (trainable, a copy).

    The copy keeps training away from the model that the graph was captured from.
    """

    names: Sequence[str]
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"unfreeze {len(self.names)} parameters"

    def run(self, program: Program) -> None:
        """Replace each named parameter by a trainable copy."""
        for name in self.names:
            set_parameter(program, name, own_copy(program, name), trainable=True)
