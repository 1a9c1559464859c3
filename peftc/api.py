"""The public functions: what `import peftc` offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftc.capture import Program
from peftc.dataflow import find_sites
from peftc.dataflow.site import Sites
from peftc.ground.diagnostics import error
from peftc.planning.make import make_plan
from peftc.planning.plan import Plan
from peftc.rewrite import pipeline
from peftc.rewrite.apply import program_of, reference_of, rewritten
from peftc.rewrite.tokens import Words
from peftc.spec import Spec, load_spec


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


def spec_of(spec: Spec | str | Path | Mapping[str, Any], set: Mapping[str, object] | None) -> Spec:
    """The resolved spec."""
    if isinstance(spec, Spec):
        if set:
            raise error("E008", "a loaded spec is resolved: give `set` to load_spec instead")
        return spec
    return load_spec(spec, set=set)
