"""Trained pieces out of some layers: the graph that the spec without these layers gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftc.capture import Program
from peftc.capture.piece_name import piece_name
from peftc.capture.program import attribute
from peftc.ground.diagnostics import error
from peftc.methods.prefix.module import Reparameterization
from peftc.rewrite.applied import APPLIED, Applied, trained
from peftc.rewrite.apply import rewritten


def without(graph: Program, layers: object, insertion: str | None = None) -> Program:
    """`graph` with no pieces in `layers`; what stays keeps its tensors. `graph` is unchanged.

    `layers` has the forms of a spec's `layers`: "0-4", "first 2", [0, 3]. Outputs are those of a
    graph whose deltas there are zero; a prefix that goes is not seen by its queries at all. What
    the spec unfroze stays as it was trained. The ablation of Houlsby et al. 2019, section 3.6.

    Raises:
        PeftcError: E107 for layers that the model does not have, E113 where nothing stands there,
            E004 for an unknown insertion, E307 where the graph does not come from `apply`.
    """
    applied: Applied | None = graph.meta.get(APPLIED)
    if applied is None:
        raise error("E307", "only a graph that `apply` or `load` made has pieces to leave out")
    spec = applied.spec.without(layers, insertion)
    made = rewritten(spec, applied.base, seed=applied.seed, reference=applied.reference)
    now: Applied = made.meta[APPLIED]
    now.random_weights = applied.random_weights
    if places(now) == places(applied):
        raise error(
            "E113",
            f"nothing of {insertion or applied.spec.name} stands in layers {layers}",
            help=tuple(
                f"{name} stands at: {', '.join(at)}" for name, at in places(applied).items()
            ),
        )
    before = trained(graph)
    with torch.no_grad():
        for name, parameter in trained(made).items():
            parameter.copy_(carried(name, before[name], graph, made))
    return made


def places(applied: Applied) -> dict[str, list[str]]:
    """The names of an insertion's sites, by its id."""
    planned: list[dict[str, Any]] = applied.plan["insertions"]
    return {i["id"]: [s["name"] for s in i["sites"]] for i in planned}


def carried(name: str, value: Tensor, graph: Program, made: Program) -> Tensor:
    """A tensor of `graph` as `made` has it: the last layer of a prefix MLP has fewer sites."""
    path, _, _ = name.rpartition(".out.")
    network = attribute(graph, path) if path else None
    if not isinstance(network, Reparameterization):
        return value
    piece = piece_name(name)
    insertion = piece.insertion if piece else ""
    stays = places(made.meta[APPLIED])[insertion]
    kept = [s in stays for s in places(graph.meta[APPLIED])[insertion] for _ in ("key", "value")]
    parts = value.split([heads * dim for heads, _, dim in network.shapes])
    return torch.cat([part for part, keep in zip(parts, kept, strict=True) if keep])
