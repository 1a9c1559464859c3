"""Spec + sites -> plan: every insertion resolved to its places, sizes and parameter counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from peftc.dataflow.select import explain_no_match, select
from peftc.dataflow.site import Attention, Site, Sites
from peftc.diagnostics import Diagnostic, PeftcError
from peftc.initial import problem as cannot_start
from peftc.pieces import piece_class
from peftc.pieces.prefix import Prefix, Reparameterization, prefix_at
from peftc.spec import Insertion, Spec


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

    @property
    def inserted(self) -> int:
        """Parameters that the insertions add."""
        return sum(p.parameters for p in self.insertions)

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
                    "sites": [place_json(place) for place in p.places],
                }
                for p in self.insertions
            ],
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
    for k, insertion in enumerate(spec.insert):
        places, counts = resolve(spec, k, sites, problems, notes)
        if places:
            found = len(problems)
            check_sizes(spec, k, places, sites, problems)
            if len(problems) > found:
                continue
            count = count_parameters(insertion, places, sites)
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
    )


def resolve(
    spec: Spec, k: int, sites: Sites, problems: list[Diagnostic], notes: list[Diagnostic]
) -> tuple[list[Site | Attention], dict[str, int]]:
    """The places of one insertion, in the order of `at` and of the graph."""
    insertion = spec.insert[k]
    places: list[Site | Attention] = []
    counts: dict[str, int] = {}
    for j, at in enumerate(insertion.at):
        label = at if isinstance(at, str) else f"module: {at.module}"
        stack = insertion.stack
        if at == "embed.out" and stack == "any" and len(sites.embeddings) > 1:
            stack = sites.embeddings[0].site.stack  # a prompt goes to the encoder (Lester et al.)
        try:
            found = select(sites, at, insertion.layers, stack)
            kept = kept_of(found, insertion, sites)
        except ValueError as cause:
            problems.append(Diagnostic("E107", str(cause), spec.span("insert", k, "layers")))
            continue
        counts[label] = len(kept)
        places += [p for p in kept if p not in places]
        if found:
            continue
        span = spec.span("insert", k, "at", j) or spec.span("insert", k, "at")
        if insertion.optional:
            notes.append(Diagnostic("W102", f"`{label}` matches nothing, and is optional", span))
        else:
            problems.append(no_match(insertion, label, at, sites, span))
    return places, counts


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


def no_match(insertion: Insertion, label: str, at: Any, sites: Sites, span: Any) -> Diagnostic:
    """Why an entry of `at` matched nothing, and what would."""
    name = sites.program.signature.model_class
    if insertion.delta.kind == "prefix" and not sites.attentions:
        return Diagnostic(
            "E105",
            f"`prefix` needs attention keys and values; {name} has none",
            span,
            help=("`embed.out` + prompt, or `block.out` + bottleneck may fit this model",),
        )
    notes, help = explain_no_match(sites, at)
    return Diagnostic(
        "E101",
        f"`{label}` matches nothing in {name}",
        span,
        notes=tuple(notes),
        help=(*help, "to skip it on models that lack it: `optional: true`"),
    )


def check_sizes(
    spec: Spec,
    k: int,
    places: Sequence[Site | Attention],
    sites: Sites,
    problems: list[Diagnostic],
) -> None:
    """Refuse layers without a size, ranks that reduce nothing, and low rank without a linear."""
    insertion = spec.insert[k]
    try:
        options = [options_at(insertion, place, sites) for place in places]
    except ValueError as cause:
        where = spec.span("insert", k, "delta")
        problems.append(Diagnostic("E107", f"`{insertion.delta.kind}`: {cause}", where))
        return
    if insertion.delta.kind == "pipe":
        check_pipe(spec, k, places, problems)
    if why := cannot_start(insertion, sites.program.signature.config):
        where = spec.span("insert", k, "delta", insertion.delta.kind, "init")
        problems.append(Diagnostic("E114", why, where))
    if insertion.delta.kind not in ("low_rank", "dora"):
        return
    for place, option in zip(places, options, strict=True):
        if isinstance(place, Attention):
            continue
        rank = option.rank
        looked_up = piece_class(insertion.delta.kind).looks_up and place.lookup is not None
        if place.weight is None and not looked_up:
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
        limit = min(place.width, reading_width(insertion, place))
        if rank >= limit:
            problems.append(
                Diagnostic(
                    "E103",
                    f"rank {rank} is larger than the layer allows",
                    spec.span("insert", k, "delta"),
                    label=f"{place.role}, layer {place.layer}: {place.in_width} > {place.width}",
                    help=(f"rank must be below {limit} here; ranks above 64 rarely help",),
                )
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
            label = entry.role or entry.module or entry.parameter
            problems.append(
                Diagnostic(
                    "E101",
                    f"unfreeze: `{label}` matches no parameter of "
                    f"{sites.program.signature.model_class}",
                    spec.span("unfreeze", k),
                    help=("load the model with --task for a head; or `optional: true`",),
                )
            )
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
    wanted = spec.expect.sites
    found = sum(len(p.places) for p in planned)
    if isinstance(wanted, str):
        wanted = int(wanted.split()[0]) * sum(sites.layers.values())
    if found != wanted:
        problems.append(
            Diagnostic(
                "E102",
                f"the spec expects {spec.expect.sites} sites; this model has {found}",
                spec.span("expect", "sites"),
                notes=tuple(f"{p.insertion.id}: {len(p.places)}" for p in planned),
            )
        )


def parameter_sizes(sites: Sites) -> dict[str, int]:
    """Numbers of elements of the captured model's parameters, by name."""
    return {n: p.numel() for n, p in sites.program.named_parameters()}


def count_parameters(insertion: Insertion, places: Sequence[Site | Attention], sites: Sites) -> int:
    """Parameters that the insertion adds, from its pieces built without memory."""
    with torch.device("meta"):
        made = build_pieces(insertion, places, sites)
    extra = 0
    if insertion.composition.kind == "gate":
        channels = insertion.composition.options.per == "channel"
        widths = [p.width for p in places if isinstance(p, Site)]
        extra = sum(widths) if channels else len(widths)
    return extra + sum(p.numel() for m in made for p in m.parameters())


def build_pieces(
    insertion: Insertion, places: Sequence[Site | Attention], sites: Sites
) -> list[nn.Module]:
    """Fresh pieces of one insertion, one a place, and a reparameterisation at the end if any."""
    options = insertion.delta.options
    if insertion.delta.kind == "prefix":
        attentions = [p for p in places if isinstance(p, Attention)]
        pieces: list[nn.Module] = [prefix_at(options, a) for a in attentions]
        if options.reparam is not None:
            pieces.append(reparameterization(options, attentions, sites))
        return pieces
    kind = piece_class(insertion.delta.kind)
    return [
        kind.at(options_at(insertion, p, sites), reading_width(insertion, p), p.width)  # type: ignore[union-attr]
        for p in places
    ]


def options_at(insertion: Insertion, place: Site | Attention, sites: Sites) -> Any:
    """The delta's options at one place, sizes by layer resolved.

    Raises:
        ValueError: where a size is not said for the place's layer, or twice.
    """
    return insertion.delta.options.at_layer(place.layer, sites.layers.get(place.stack, 0))


def reading_width(insertion: Insertion, site: Any) -> int:
    """The width of what the insertion's piece reads at a site."""
    if insertion.reads != "x":
        return site.width
    if site.lookup is not None and piece_class(insertion.delta.kind).looks_up:
        return site.lookup.rows
    return site.in_width or site.width


def reparameterization(
    options: Any, attentions: Sequence[Attention], sites: Sites
) -> Reparameterization:
    """The MLP that makes the keys and values of all sites, as wide as the embeddings."""
    shapes = [s for a in attentions for s in Prefix(
        options.tokens, a.heads, a.kv_heads, a.head_dim, a.value_dim, own=False
    ).shapes]  # fmt: skip
    width = next(e.site.width for e in sites.embeddings)
    return Reparameterization(
        shapes, options.tokens, width, options.reparam.hidden, options.reparam.act
    )


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
