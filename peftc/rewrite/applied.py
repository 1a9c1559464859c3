"""What `apply` did to a Program: the record that travels with the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from peftc.capture import Program
from peftc.planning.plan import Plan

APPLIED = "peftc.applied"  # the key, in a Program's meta, of what `apply` did to it


def trainable(graph: Program) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by name: inserted pieces and what the spec unfreezes."""
    return {n: p for n, p in graph.named_parameters() if p.requires_grad}


def trained(graph: Program) -> dict[str, nn.Parameter]:
    """What an artifact stores: every inserted parameter, and the base's unfrozen ones."""
    return dict(graph.peft_parameters()) | trainable(graph)


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another library that a graph was imported from.

    `keys`: its names of the base's parameters; `same`: names in it of base weights as they are;
    `dtypes` by its names; `unused`: parts of it that take part in no output.
    """

    kind: str
    config: dict[str, Any]
    keys: dict[str, str]
    same: dict[str, str]
    dtypes: dict[str, str]
    unused: dict[str, Tensor]


class Applied:
    """What `apply` did: the resolved spec, the plan, the passes' reports, the model's name.

    `base` is the graph without the pieces, over the same frozen weights.
    """

    def __init__(
        self, made: Plan, reports: list[Any], seed: int, reference: str | None, base: Program
    ) -> None:
        self.made = made
        self.spec = made.spec
        self.plan = made.to_json()
        self.reports = reports
        self.seed = seed
        self.reference = reference
        self.base = base
        self.random_weights = False  # whether the base was made from its config alone
        self.origin: Origin | None = None  # of an import
