"""Spec + model -> graph: captured, planned, rewritten, its pieces started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from peftc.capture import Program, capture
from peftc.capture.load import load_model
from peftc.capture.suitable import check_suitable
from peftc.dataflow import find_sites
from peftc.ground.diagnostics import error
from peftc.planning.make import make_plan
from peftc.planning.plan import Plan
from peftc.rewrite import pipeline
from peftc.rewrite.applied import APPLIED, Applied
from peftc.rewrite.initial import initial_values, start
from peftc.rewrite.tokens import Words
from peftc.spec import Spec


def rewritten(
    spec: Spec, base: Program, *, seed: int, reference: str | None, words: Words | None = None
) -> Program:
    """The graph that a resolved spec makes of `base`, which stays as it is."""
    made = make_plan(spec, find_sites(base.clone()))
    return carried_out(made, base, seed=seed, reference=reference, words=words)


def carried_out(
    made: Plan, base: Program, *, seed: int, reference: str | None, words: Words | None = None
) -> Program:
    """A plan carried out in place on the Program of its sites, a clone of `base`.

    Without `words`, pieces that start from words are left for stored tensors to be copied in.
    """
    values = initial_values(made, words, seed) if words is not None else {}
    graph, reports = pipeline.rewrite(made, seed=seed)
    for path, tensors in values.items():
        start(path, graph.get_submodule(path), tensors)
    graph.meta[APPLIED] = Applied(made, reports, seed, reference, base)
    return graph


def select_task(graph: Program, task: str) -> Program:
    """The graph for one of its tasks alone: its own pieces and head, outputs as in such a model.

    Raises:
        PeftcError: E106 for a task that the graph does not have.
    """
    return pipeline.select_task(graph, task)[0]


def program_of(model: Any, *, weights: bool, static_length: int | None = None) -> Program:
    """The captured Program of whatever names or is a model."""
    if isinstance(model, Program):
        return model
    if isinstance(model, nn.Module):
        if weights and any(p.device.type == "meta" for p in model.parameters()):
            check_suitable(model)
            raise error(
                "E209",
                f"{type(model).__name__} has no weights in memory: it was made on the meta device",
                help=("load it with its weights: from_pretrained(FOLDER)",),
            )
        return capture(model, static_length=static_length)
    return capture(load_model(model, weights=weights), static_length=static_length)


def reference_of(model: Any) -> str | None:
    """Where the model can be loaded from again: a folder, a hub name, or None."""
    if isinstance(model, str | Path):
        return str(model)
    config = getattr(model, "config", None) or getattr(model, "signature", model).config
    return getattr(config, "_name_or_path", None) or None
