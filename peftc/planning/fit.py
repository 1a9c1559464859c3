"""Whether an insertion fits the places where a model has it stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from peftc.capture.program import attribute
from peftc.dataflow.facts import Facts
from peftc.dataflow.lengthen import lengthened
from peftc.dataflow.site import Attention, Site, Sites
from peftc.ground.diagnostics import Diagnostic, PeftcError, Span
from peftc.methods.registry import piece_class
from peftc.passes.ensemble import cannot_vote
from peftc.pieces.base import Piece
from peftc.planning.build import build_gates, options_at, reading_width
from peftc.planning.messages import no_features, no_linear, rank_too_large
from peftc.planning.plan import task_labels
from peftc.spec import Insertion, Spec

OF_THE_MODEL = ("vocab", "labels", "text", "ids")

UNNAMED = re.compile(r"LABEL_\d+")


def unfit(
    spec: Spec,
    k: int,
    task: str,
    insertion: Insertion,
    places: Sequence[Site | Attention],
    sites: Sites,
) -> Iterator[Diagnostic]:
    """What does not fit of the spec's `k`-th insertion, which is `insertion` for this task."""
    kind = insertion.delta.kind
    for place in places:
        if isinstance(place, Site) and place.features is None:
            yield no_features(place, spec.span("insert", k, "at"))
            return
    own = ("insert", k, "by_task", task, "delta")
    where = own if spec.has(*own) else ("insert", k, "delta")
    try:
        options = [options_at(insertion, place, sites) for place in places]
    except ValueError as cause:
        yield Diagnostic("E107", f"`{kind}`: {cause}", spec.span(*where))
        return
    if kind == "pipe":
        yield from unfit_steps(insertion, places, spec.span(*where, kind))
    if why := cannot_start(insertion, task_labels(spec, task, sites)):
        yield Diagnostic("E114", why, spec.span(*where, kind, "init"))
    if insertion.gate is not None:
        try:
            build_gates(insertion, [p for p in places if isinstance(p, Attention)], sites)
        except LookupError as cause:
            message = f"the gate of `{insertion.id}` has nothing to read: {cause}"
            yield Diagnostic("E101", message, spec.span("insert", k, "compose"))
    if kind == "prompt":
        yield from unfit_rows(spec, k, insertion, places, sites, spec.span(*where))
    yield from unfit_ensemble(spec, k, sites)
    yield from unfit_infix(spec, k, places, sites)
    if kind not in ("low_rank", "dora"):
        return
    for place, option in zip(places, options, strict=True):
        if isinstance(place, Attention):
            continue
        if not can_be_updated(place, piece_class(kind)):
            yield no_linear(kind, place, spec.span("insert", k, "at"))
            return
        read = reading_width(insertion, place)
        if option.rank >= min(place.width, read):
            span = spec.span(*where, kind, "rank")
            yield rank_too_large(place, read, option.rank, sites, span)
            return


def unfit_steps(
    insertion: Insertion, places: Sequence[Site | Attention], span: Span | None
) -> Iterator[Diagnostic]:
    """E112: steps that do not fit together, or that do not end with the site's features."""
    for place in places:
        if isinstance(place, Attention):
            continue
        read = reading_width(insertion, place)
        try:
            with torch.device("meta"):
                piece_class("pipe").at(insertion.delta.options, read, place.width)
        except ValueError as cause:
            yield Diagnostic("E112", str(cause), span, notes=(f"at {place.role}, {place.module}",))
            return


def can_be_updated(place: Site, kind: type[Piece]) -> bool:
    """Whether a place has a matrix that a low-rank piece can stand beside, or be merged into."""
    if place.weight is None:
        return kind.looks_up and place.lookup is not None
    return place.weight.matrix or not kind.reads_weight


def cannot_start(insertion: Insertion, labels: Sequence[str]) -> str | None:
    """Why an insertion cannot start as it says on a model with these labels, or None."""
    if not starts_from_model(insertion):
        return None
    options = insertion.delta.options
    network = options.reparam or getattr(options, "encoder", None)
    if network is not None and network.hidden < options.tokens:
        return (
            f"{options.tokens} tokens cannot be fitted through {network.hidden} hidden features: "
            "`hidden` must be at least `tokens`"
        )
    if options.init.kind != "labels":
        return None
    if len(labels) > options.tokens:
        return f"{len(labels)} labels need as many `tokens`, there are {options.tokens}"
    if getattr(options, "ensemble", None) and len(labels) == options.tokens:
        return "an ensemble that starts from the labels alone stays equal: more `tokens`"
    if not labels or all(map(UNNAMED.fullmatch, labels)):
        return "the model's labels have no names: give them, --labels negative,positive"
    return None


def unfit_rows(
    spec: Spec,
    k: int,
    insertion: Insertion,
    places: Sequence[Site | Attention],
    sites: Sites,
    span: Span | None,
) -> list[Diagnostic]:
    """E114 and E118: a prompt before an image or a sound that starts from words, or cannot stand.

    Raises nothing: what the pass would refuse is told with its place in the spec.
    """
    embedded = [e.site for e in sites.embeddings]
    for place in places:
        if isinstance(place, Attention) or any(place is site for site in embedded):
            continue
        if starts_from_model(insertion):
            text = "an image or a sound has no words for a prompt to start from"
            return [Diagnostic("E114", text, span, help=("init: normal", "init: uniform"))]
        if not insertion.composition.options.trim:
            text = "an image or a sound is as long as its places, so a prompt is cut away again"
            return [Diagnostic("E118", text, span, help=("trim: true",))]
        try:
            lengthened(Facts(sites.program), place.h, sites.ends[place.stack])
        except PeftcError as refusal:
            where = spec.span("insert", k, "at")
            return [replace(d, span=where) for d in refusal.diagnostics]
    return []


def unfit_ensemble(spec: Spec, k: int, sites: Sites) -> list[Diagnostic]:
    """E115: a second ensemble, and votes on what has no classes."""
    options = spec.insert[k].delta.options
    if getattr(options, "ensemble", None) is None:
        return []
    where = spec.span("insert", k, "delta", "prompt", "ensemble")
    found = []
    for other in spec.insert[:k]:
        if getattr(other.delta.options, "ensemble", None):
            text = f"`{other.id}` is an ensemble already, and a model can have one"
            found.append(Diagnostic("E115", text, where))
    if why := cannot_vote(options, sites.program.signature):
        found.append(Diagnostic("E115", why, where, help=("`vote: mean` averages the outputs",)))
    return found


def unfit_infix(
    spec: Spec, k: int, places: Sequence[Site | Attention], sites: Sites
) -> list[Diagnostic]:
    """E116: a prefix in front of a token that the model cannot be given."""
    before = getattr(spec.insert[k].delta.options, "before", None)
    if before is None:
        return []
    where = spec.span("insert", k, "delta", "prefix", "before")
    rows = {e.site.stack: attribute(sites.program, e.table).shape[0] for e in sites.embeddings}
    for stack in dict.fromkeys(p.stack for p in places):
        of = f"the {stack}" if stack else sites.program.signature.model_class
        if stack not in rows:
            return [Diagnostic("E116", f"{of} reads no token ids to look for {before} in", where)]
        if before >= rows[stack]:
            text = f"{of} has no token {before}: its ids are 0 to {rows[stack] - 1}"
            return [Diagnostic("E116", text, where)]
    return []


def starts_from_model(insertion: Insertion) -> bool:
    """Whether an insertion's first values come from the model."""
    init = getattr(insertion.delta.options, "init", None)
    return getattr(init, "kind", None) in OF_THE_MODEL
