"""Spec + sites -> plan: every insertion resolved to its places, sizes and parameter counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from peftc.dataflow.select import select
from peftc.dataflow.site import Attention, Site, Sites
from peftc.ground.diagnostics import Diagnostic, PeftcError, Span
from peftc.planning.build import count_parameters
from peftc.planning.fit import unfit
from peftc.planning.heads import check_rows, plan_heads
from peftc.planning.longest import longest_text
from peftc.planning.messages import no_layers, no_match, nothing_to_unfreeze, partly
from peftc.planning.plan import Plan, Planned
from peftc.spec import Insertion, Spec


def make_plan(spec: Spec, sites: Sites) -> Plan:
    """Resolve `spec` on a model's sites.

    Raises:
        PeftcError: every E1xx that the spec meets on this model, all at once.
    """
    problems: list[Diagnostic] = []
    notes: list[Diagnostic] = []
    planned: list[Planned] = []
    heads = plan_heads(spec, sites, problems)
    only = next(iter(spec.tasks)) if len(spec.tasks) == 1 else ""
    for k, insertion in enumerate(spec.insert):
        if only:
            insertion = insertion.for_task(only)
        if insertion.id in dir(nn.Module()):
            text = f"`{insertion.id}` cannot be an id: modules have that name already"
            problems.append(Diagnostic("E005", text, spec.span("insert", k, "id")))
        places, counts = resolve(spec, k, sites, problems, notes)
        if not places:
            continue
        found = len(problems)
        for task, own in insertion.variants(spec.tasks).items():
            if len(problems) == found:
                problems += unfit(spec, k, task or only, own, places, sites)
        if insertion.share == "per_task":
            check_rows(spec, k, places, sites, problems)
        if len(problems) == found:
            count = count_parameters(insertion, places, sites, spec.tasks)
            planned.append(Planned(insertion, tuple(places), counts, count))
    if not problems:  # else the places of what does not fit are missing from the count
        check_expectations(spec, sites, planned, problems)
    unfrozen = unfrozen_names(spec, sites, problems)
    tasks = tuple(h.task for h in heads) if len(heads) > 1 else ()
    longest = longest_text(spec, planned, tasks, sites, problems)
    if problems:
        raise PeftcError(problems)
    sizes = {n: p.numel() for n, p in sites.program.named_parameters()}
    return Plan(
        spec=spec,
        sites=sites,
        insertions=tuple(planned),
        unfrozen=unfrozen,
        notes=tuple(notes),
        base=sum(sizes.values()),
        unfrozen_count=sum(sizes[n] for n in unfrozen),
        heads=heads,
        longest=longest,
    )


def resolve(
    spec: Spec, k: int, sites: Sites, problems: list[Diagnostic], notes: list[Diagnostic]
) -> tuple[list[Site | Attention], dict[str, int]]:
    """The places of one insertion, in the order of `at` and of the graph."""
    insertion = spec.insert[k]
    places: list[Site | Attention] = []
    counts: dict[str, int] = {}
    unmatched: list[tuple[int, str, Any, str]] = []
    for j, at in enumerate(insertion.at):
        label = at if isinstance(at, str) else f"module: {at.module}"
        stack = insertion.stack
        if at == "embed.out" and stack == "any" and len(sites.starts) > 1:
            stack = sites.starts[0].stack  # a prompt goes to the encoder (Lester et al.)
        key = "layers"
        try:
            found = select(sites, at, insertion.layers, stack)
            key = "without"
            kept = kept_of(found, insertion, sites)
        except ValueError as cause:
            problems.append(no_layers(spec, k, key, str(cause), stack, sites))
            return [], counts
        counts[label] = len(kept)
        places += apart([p for p in kept if p not in places], places)
        if not found:
            unmatched.append((j, label, at, stack))
        elif (note := partly(spec, k, found, sites, place_of(spec, k, j))) is not None:
            notes.append(note)
    for j, label, at, stack in unmatched:
        span = place_of(spec, k, j)
        if insertion.optional:
            help = ("`peftc sites MODEL` lists what this model has",)
            message = f"`{label}` matches nothing, and is optional"
            notes.append(Diagnostic("W102", message, span, "left out", help=help))
        else:
            problems.append(no_match(insertion, label, at, stack, sites, counts, span))
    return places, counts


def apart(
    found: Sequence[Site | Attention], before: Sequence[Site | Attention]
) -> list[Site | Attention]:
    """The places found, those with a name that another has numbered: `a.b_c` and `a_b.c`."""
    names = {p.name for p in before}
    named = []
    for place in found:
        while place.name in names:
            place = replace(place, order=place.order + 1)
        names.add(place.name)
        named.append(place)
    return named


def place_of(spec: Spec, k: int, j: int) -> Span | None:
    """Where an entry of `at` is written: its role, or the glob of a module."""
    at = ("insert", k, "at")
    for where in ((*at, j, "module"), (*at, "module"), (*at, j), at):
        if spec.has(*where):
            return spec.span(*where)
    return spec.span(*at)


def kept_of(
    found: list[Site | Attention], insertion: Insertion, sites: Sites
) -> list[Site | Attention]:
    """The places that are not in the layers that the insertion is to be without.

    Raises:
        ValueError: where `without` names a layer that the stack does not have.
    """
    if insertion.without is None:
        return found
    stacks = {p.stack for p in found if p.layer is not None}
    gone = {s: insertion.without.select(sites.layers[s]) for s in stacks}
    return [p for p in found if p.layer is None or p.layer not in gone[p.stack]]


def unfrozen_names(spec: Spec, sites: Sites, problems: list[Diagnostic]) -> tuple[str, ...]:
    """The base parameters that `unfreeze` names, each once."""
    chosen: dict[str, None] = {}
    for k, entry in enumerate(spec.unfreeze):
        found = parameters_of(entry, sites)
        if not found and not entry.optional:
            problems.append(nothing_to_unfreeze(spec, k, entry, sites))
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def parameters_of(entry: Any, sites: Sites) -> list[str]:
    """The base parameters that one entry of `unfreeze` names."""
    if entry.role is not None:
        return list(sites.parameters.get(entry.role, ()))
    names = [n for n, _ in sites.program.named_parameters()]
    if entry.parameter is not None:
        return [n for n in names if fnmatchcase(n, entry.parameter)]
    return [n for n in names if fnmatchcase(n.rpartition(".")[0], entry.module)]


def check_expectations(
    spec: Spec, sites: Sites, planned: Sequence[Planned], problems: list[Diagnostic]
) -> None:
    """`expect` turns a count into a test."""
    if spec.expect is None or spec.expect.sites is None:
        return
    wanted, layers = spec.expect.sites, sum(sites.layers.values())
    found, said = sum(len(p.places) for p in planned), f"{wanted} sites"
    if isinstance(wanted, str):
        each = wanted.split()[0]
        wanted = int(each) * layers
        said = f"{wanted} sites, {each} in each of {layers} layers"
    if found != wanted:
        problems.append(
            Diagnostic(
                "E102",
                f"the spec expects {said}; on this model it has {found}",
                spec.span("expect", "sites"),
                notes=tuple(f"`{p.insertion.id}` stands at {len(p.places)}" for p in planned),
                help=("is this the model that the spec was written for? else change the number",),
            )
        )
