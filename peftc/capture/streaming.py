"""Running a graph whose weights are on disk: each is read when it is used, and let go after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.fake import has_numbers
from peftc.capture.program import Program
from peftc.capture.stored import own_copy


class Streaming(fx.Interpreter):
    """Runs a Program node by node; no more than the weights of one node are in memory."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.program = program

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The weight, read from its file where the graph's is fake."""
        value = super().get_attr(target, args, kwargs)
        if isinstance(value, Tensor) and not has_numbers(value):
            return own_copy(self.program, str(target))
        return value


def run_flat(program: Program, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`program.flat(*values)`, also of a graph that was captured without weights."""
    if all(has_numbers(p) for p in program.parameters()):
        return program.flat(*values)
    with torch.no_grad():
        return Streaming(program).run(*values)
