"""Spec + sites -> plan: every insertion resolved to its places, sizes and parameter counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from peftc.build import build_gates, count_parameters, options_at, reading_width
from peftc.dataflow.select import select
from peftc.dataflow.site import Attention, Site, Sites
from peftc.diagnostics import Diagnostic, PeftcError, Span
from peftc.initial import labels_of
from peftc.initial import problem as cannot_start
from peftc.misfit import (
    no_ensemble,
    no_infix,
    no_layers,
    no_match,
    nothing_to_unfreeze,
    partly,
    rank_too_large,
)
from peftc.pieces import piece_class
from peftc.spec import Insertion, Spec
from peftc.task_plan import PlannedHead, check_rows, plan_heads


@dataclass(frozen=True)
class Planned:
    """One insertion of the spec at its places. `parameters` counts what it adds."""

    insertion: Insertion
    places: tuple[Site | Attention, ...]
    counts: dict[str, int]  # places by entry of `at`
    parameters: int

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it touches, in order."""
        return tuple(sorted({p.layer for p in self.places if p.layer is not None}))


@dataclass(frozen=True)
class Plan:
    """What `apply` will do to one model: data, no tensors."""

    spec: Spec
    sites: Sites
    insertions: tuple[Planned, ...]
    unfrozen: tuple[str, ...]  # parameters of the base that become trainable
    notes: tuple[Diagnostic, ...]
    base: int  # parameters of the captured model
    unfrozen_count: int
    heads: tuple[PlannedHead, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks by which a bank tells its pieces apart; none where there is one at most."""
        return tuple(h.task for h in self.heads) if len(self.heads) > 1 else ()

    def labels(self, task: str = "") -> tuple[str, ...]:
        """The labels of a task, of the only one, or of the model itself."""
        return task_labels(self.spec, task, self.sites)

    @property
    def inserted(self) -> int:
        """Parameters that the insertions and the heads of tasks add."""
        return sum(p.parameters for p in (*self.insertions, *self.heads))

    @property
    def trainable(self) -> int:
        """Parameters that will have gradients."""
        return self.inserted + self.unfrozen_count

    def to_json(self) -> dict[str, Any]:
        """The plan as data: every place with its module path and sizes."""
        return {
            "format_version": "1.0",
            "spec": self.spec.name,
            "model": self.sites.program.signature.model_class,
            "insertions": [
                {
                    "id": p.insertion.id,
                    "delta": p.insertion.delta.kind,
                    "compose": p.insertion.composition.kind,
                    "parameters": p.parameters,
                    **({"share": p.insertion.share} if p.insertion.share else {}),
                    "sites": [place_json(place) for place in p.places],
                }
                for p in self.insertions
            ],
            **({"tasks": [h.to_json() for h in self.heads]} if self.heads else {}),
            "unfrozen": list(self.unfrozen),
            "parameters": {
                "base": self.base,
                "inserted": self.inserted,
                "trainable": self.trainable,
            },
            "notes": [n.to_json() for n in self.notes],
        }


def make_plan(spec: Spec, sites: Sites) -> Plan:
    """Resolve `spec` on a model's sites.

    Raises:
        PeftcError: every E1xx that the spec meets on this model, all at once.
    """
    problems: list[Diagnostic] = []
    notes: list[Diagnostic] = []
    planned: list[Planned] = []
    heads = plan_heads(spec, sites, problems)
    for k, insertion in enumerate(spec.insert):
        if len(spec.tasks) == 1:
            insertion = insertion.for_task(next(iter(spec.tasks)))
        places, counts = resolve(spec, k, sites, problems, notes)
        if places:
            found = len(problems)
            for task, own in insertion.variants(spec.tasks).items():
                if len(problems) == found:
                    labels = task_labels(spec, task, sites)
                    check_sizes(spec, k, own, places, sites, labels, problems)
            if insertion.share == "per_task":
                check_rows(spec, k, places, sites, problems)
            if len(problems) > found:
                continue
            count = count_parameters(insertion, places, sites, spec.tasks)
            planned.append(Planned(insertion, tuple(places), counts, count))
    unfrozen = unfrozen_names(spec, sites, problems)
    check_expectations(spec, sites, planned, problems)
    if problems:
        raise PeftcError(problems)
    sizes = parameter_sizes(sites)
    return Plan(
        spec=spec,
        sites=sites,
        insertions=tuple(planned),
        unfrozen=unfrozen,
        notes=tuple(notes),
        base=sum(sizes.values()),
        unfrozen_count=sum(sizes[n] for n in unfrozen),
        heads=heads,
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
        if at == "embed.out" and stack == "any" and len(sites.embeddings) > 1:
            stack = sites.embeddings[0].site.stack  # a prompt goes to the encoder (Lester et al.)
        key = "layers"
        try:
            found = select(sites, at, insertion.layers, stack)
            key = "without"
            kept = kept_of(found, insertion, sites)
        except ValueError as cause:
            problems.append(no_layers(spec, k, key, str(cause), stack, sites))
            return [], counts
        counts[label] = len(kept)
        places += [p for p in kept if p not in places]
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


def task_labels(spec: Spec, task: str, sites: Sites) -> tuple[str, ...]:
    """The labels of a task, of the only one, or of the model itself."""
    only = next(iter(spec.tasks)) if len(spec.tasks) == 1 else None
    head = spec.tasks.get(task or only or "")
    return head.head.options.names if head else labels_of(sites.program.signature.config)


def check_sizes(
    spec: Spec,
    k: int,
    insertion: Insertion,
    places: Sequence[Site | Attention],
    sites: Sites,
    labels: Sequence[str],
    problems: list[Diagnostic],
) -> None:
    """Refuse layers without a size, ranks that reduce nothing, and low rank without a linear."""
    try:
        options = [options_at(insertion, place, sites) for place in places]
    except ValueError as cause:
        where = spec.span("insert", k, "delta")
        problems.append(Diagnostic("E107", f"`{insertion.delta.kind}`: {cause}", where))
        return
    if insertion.delta.kind == "pipe":
        check_pipe(spec, k, places, problems)
    if why := cannot_start(insertion, labels):
        where = spec.span("insert", k, "delta", insertion.delta.kind, "init")
        problems.append(Diagnostic("E114", why, where))
    if insertion.gate is not None:
        try:
            build_gates(insertion, [p for p in places if isinstance(p, Attention)], sites)
        except LookupError as cause:
            message = f"the gate of `{insertion.id}` has nothing to read: {cause}"
            problems.append(Diagnostic("E101", message, spec.span("insert", k, "compose")))
    problems += no_ensemble(spec, k, sites) + no_infix(spec, k, places, sites)
    if insertion.delta.kind not in ("low_rank", "dora"):
        return
    for place, option in zip(places, options, strict=True):
        if isinstance(place, Attention):
            continue
        rank = option.rank
        kind = piece_class(insertion.delta.kind)
        looked_up = kind.looks_up and place.lookup is not None
        kernels = place.weight is not None and not place.weight.matrix
        if (place.weight is None and not looked_up) or (kernels and kind.reads_weight):
            problems.append(
                Diagnostic(
                    "E109",
                    f"`{insertion.delta.kind}` needs a linear; "
                    f"`{place.module or place.name}` is none",
                    spec.span("insert", k, "at"),
                    help=("use `bottleneck` or `pipe` there",),
                )
            )
            return
        if rank >= min(place.width, reading_width(insertion, place)):
            problems.append(
                rank_too_large(spec, k, place, reading_width(insertion, place), rank, sites)
            )
            return


def check_pipe(
    spec: Spec, k: int, places: Sequence[Site | Attention], problems: list[Diagnostic]
) -> None:
    """Refuse steps that do not fit together, or that do not end with the site's features."""
    insertion = spec.insert[k]
    for place in places:
        if isinstance(place, Attention):
            continue
        try:
            with torch.device("meta"):
                piece_class("pipe").at(
                    insertion.delta.options, reading_width(insertion, place), place.width
                )
        except ValueError as cause:
            where = spec.span("insert", k, "delta", "pipe") or spec.span("insert", k, "delta")
            problems.append(
                Diagnostic("E112", str(cause), where, notes=(f"at {place.role}, {place.module}",))
            )
            return


def unfrozen_names(spec: Spec, sites: Sites, problems: list[Diagnostic]) -> tuple[str, ...]:
    """The base parameters that `unfreeze` names, each once, in the graph's order."""
    chosen: dict[str, None] = {}
    for k, entry in enumerate(spec.unfreeze):
        found = parameters_of(entry, sites)
        if not found and not entry.optional:
            problems.append(nothing_to_unfreeze(spec, k, entry, sites))
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def parameters_of(entry: Any, sites: Sites) -> list[str]:
    """The parameters of one `unfreeze` entry, narrowed to its layers."""
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


def parameter_sizes(sites: Sites) -> dict[str, int]:
    """Numbers of elements of the captured model's parameters, by name."""
    return {n: p.numel() for n, p in sites.program.named_parameters()}


def place_json(place: Site | Attention) -> dict[str, Any]:
    """A place as data."""
    if isinstance(place, Attention):
        sizes = {
            "heads": place.heads,
            "kv_heads": place.kv_heads,
            "head_dim": place.head_dim,
            "value_dim": place.value_dim,
        }
    else:
        sizes = {"width": place.width, "in_width": place.in_width}
    return {
        "name": place.name,
        "role": place.role,
        "layer": place.layer,
        "stack": place.stack,
        "module": place.module,
        **sizes,
    }
