"""The weights that an exported file is to hold, each made or read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from peftc.capture.fake import has_numbers
from peftc.capture.program import Program, attribute
from peftc.capture.stored import Stored, stored_of
from peftc.passes.base import DEFERRED, settled


@dataclass(frozen=True)
class Wanted:
    """One tensor of the graph: its numbers, and where they lie if no memory has them.

    `exact` ones are copies, of which every bit is to be there; the others were computed, as by
    merging, which rounds otherwise on another machine.
    """

    give: Callable[[], Tensor]
    exact: bool = True
    place: Stored | None = None


def wanted_of(program: Program, graph: Program) -> dict[str, Wanted]:
    """The tensors that a folded graph reads, by name: the base's, and those of its pieces."""
    before = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    waiting, stored = program.meta.get(DEFERRED, {}), stored_of(program)
    wanted = {}
    for name, tensor in tensors_read(program):
        exact = before.get(name) is tensor and name not in waiting
        place = stored.get(name) if exact and stored is not None else None
        give = partial(numbers, program, name)
        wanted[name] = Wanted(give, exact, place)
    return wanted


def tensors_read(program: Program) -> list[tuple[str, Tensor]]:
    """The tensors behind the nodes of a graph, by name."""
    found: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        value: Any = attribute(program, str(node.target))
        if isinstance(value, nn.Module):
            inside = (*value.named_parameters(), *value.named_buffers())
            found |= {f"{node.target}.{n}": t for n, t in inside}
        elif isinstance(value, Tensor) and node.users:
            found[str(node.target)] = value
    return list(found.items())


def numbers(program: Program, name: str) -> Tensor:
    """A weight after the changes that wait for it; the graph's own tensor where it has one."""
    value = attribute(program, name).detach()
    if has_numbers(value) and name not in program.meta.get(DEFERRED, {}):
        return value
    return settled(program, name)
