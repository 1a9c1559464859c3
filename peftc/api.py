"""The public functions: what `import peftc` offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peftc import pipeline
from peftc.capture import Program, capture
from peftc.capture.load import load_model
from peftc.capture.suitable import check_suitable
from peftc.dataflow import find_sites
from peftc.dataflow.site import Sites
from peftc.diagnostics import error
from peftc.initial import initial_values, start
from peftc.planned import Plan
from peftc.planner import make_plan
from peftc.spec import Spec, load_spec
from peftc.words import Words

APPLIED = "peftc.applied"  # the key, in a Program's meta, of what `apply` did to it


def sites(model: Any, *, static_length: int | None = None) -> Sites:
    """The roles of a model: a `PreTrainedModel`, a Program, a folder, a hub name, or a config.

    Weights are not read where a folder, a name or a config is given.
    """
    return find_sites(program_of(model, weights=False, static_length=static_length))


def plan(
    spec: Spec | str | Path | Mapping[str, Any],
    model: Any,
    *,
    set: Mapping[str, object] | None = None,
    static_length: int | None = None,
) -> Plan:
    """What `apply` would do: every insertion at its sites, with sizes and counts. Data only.

    The passes are tried on a copy of the graph, with pieces that hold no numbers, so that what
    `apply` refuses is refused here in the same words.

    Raises:
        PeftcError: E0xx for the spec, E1xx where it does not fit the model, E2xx for the model.
    """
    program = program_of(model, weights=False, static_length=static_length)
    resolved = spec_of(spec, set)
    made = make_plan(resolved, find_sites(program))
    pipeline.attempt(make_plan(resolved, find_sites(program.clone())))
    return made


def apply(
    spec: Spec | str | Path | Mapping[str, Any],
    model: Any,
    *,
    set: Mapping[str, object] | None = None,
    seed: int = 0,
    static_length: int | None = None,
    tokenizer: Any = None,
) -> Program:
    """The model as a frozen graph with the spec's pieces in it; the model itself is unchanged.

    The graph is called like the model and shares the storage of its frozen weights. Pieces are
    drawn under `seed`; those that start from words read them with `tokenizer`, or with the one
    that stands where the model was loaded from. With `static_length` it takes inputs of exactly
    that many tokens, which captures models that loop over time.

    Raises:
        PeftcError: as `plan`; E083 where words need a tokenizer and there is none.
    """
    resolved = spec_of(spec, set)
    base = program_of(model, weights=True, static_length=static_length)
    reference = reference_of(model)
    words = Words(tokenizer, reference)
    return rewritten(resolved, base, seed=seed, reference=reference, words=words)


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


def spec_of(spec: Spec | str | Path | Mapping[str, Any], set: Mapping[str, object] | None) -> Spec:
    """The resolved spec."""
    if isinstance(spec, Spec):
        if set:
            raise error("E008", "a loaded spec is resolved: give `set` to load_spec instead")
        return spec
    return load_spec(spec, set=set)


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
