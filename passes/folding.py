"""Local patterns, run to a fixpoint: pieces that go into the frozen weights beside them."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx, nn

from peftc.capture.program import Program
from peftc.passes.base import Keeps, Pass, chosen, pieces


class Pattern(ABC):
    """One way in which one kind of piece becomes part of a frozen weight.

    A pattern looks at one piece and what stands around it. It leaves the graph as it is where the
    merged graph would give other numbers: another pattern may change that.
    """

    piece: ClassVar[type[nn.Module]]  # exactly this class, not those derived from it

    @abstractmethod
    def merge(self, program: Program, node: fx.Node, module: Any) -> bool:
        """Whether the piece `module`, called at `node`, was merged; nothing reads it then."""


@dataclass
class Merge(Pass):
    """Merges every piece that a pattern can merge, until there is none.

    Merging a piece often lets the next one of the same site be merged: of an update, a vector and
    an update, each stands on the value that the one before it leaves.
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS
    only: Collection[str] | None = None  # ids of insertions; None for all

    def run(self, program: Program) -> None:
        """Go through the pieces in the graph's order as long as that merges any."""
        while self.sweep(program):
            program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()

    def sweep(self, program: Program) -> bool:
        """Whether any piece was merged, of all that there are."""
        found = patterns()
        merged = [
            found[type(module)].merge(program, node, module)
            for node, module in pieces(program, nn.Module)
            if type(module) in found and node.users and chosen(node, self.only)
        ]
        return any(merged)


@functools.cache
def patterns() -> dict[type[nn.Module], Pattern]:
    """Every pattern by the piece that it merges, found by walking `methods`."""
    # Named, not imported: a pass knows no method, each method knows the passes.
    home = importlib.import_module("peftc.methods")
    found: dict[type[nn.Module], Pattern] = {}
    for info in pkgutil.walk_packages(home.__path__, f"{home.__name__}."):
        if info.name.rpartition(".")[2] != "fold":
            continue
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, type) and issubclass(value, Pattern) and "piece" in vars(value):
                found[value.piece] = value()
    return found
