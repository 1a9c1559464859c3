"""Fresh pieces and gates of an insertion at its places, and how many parameters they add."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peftc.dataflow.site import Attention, Site, Sites
from peftc.methods.prefix.module import Prefix, Reparameterization, prefix_at
from peftc.methods.registry import piece_class
from peftc.pieces.bank import Bank
from peftc.pieces.gate import Gate, Valve
from peftc.spec import Insertion


def count_parameters(
    insertion: Insertion,
    places: Sequence[Site | Attention],
    sites: Sites,
    tasks: Collection[str] = (),
) -> int:
    """Parameters that the insertion adds, from its pieces built without memory."""
    with torch.device("meta"):
        made = build_pieces(insertion, places, sites, tasks)
        made += build_gates(insertion, places, sites, tasks)
    return sum(p.numel() for m in made for p in m.parameters())


def build_pieces(
    insertion: Insertion,
    places: Sequence[Site | Attention],
    sites: Sites,
    tasks: Collection[str] = (),
) -> list[nn.Module]:
    """Fresh pieces of one insertion, one a place, and a reparameterisation at the end if any.

    Where each task has its own, a piece is a bank of theirs.
    """
    own = insertion.variants(tasks)
    scales = [float(getattr(i.composition.options, "scale", 1)) for i in own.values()]
    apart = scales if len(set(scales)) > 1 else None
    return by_task({t: own_pieces(i, places, sites) for t, i in own.items()}, apart)


def build_gates(
    insertion: Insertion,
    places: Sequence[Site | Attention],
    sites: Sites,
    tasks: Collection[str] = (),
) -> list[nn.Module]:
    """Fresh gates of one insertion, one a place; none where it has no gate.

    Where each task has its own, a gate is a bank of theirs.
    """
    if insertion.gate is None:
        return []
    own = insertion.variants(tasks)
    return by_task({t: own_gates(i, places, sites) for t, i in own.items()})


def by_task(
    made: Mapping[str, list[nn.Module]], scales: Sequence[float] | None = None
) -> list[nn.Module]:
    """What all tasks share as it is, under ""; of what each has for itself a bank a place."""
    if "" in made:
        return made[""]
    places = zip(*made.values(), strict=True)
    return [Bank(dict(zip(made, own, strict=True)), scales) for own in places]


def own_pieces(
    insertion: Insertion, places: Sequence[Site | Attention], sites: Sites
) -> list[nn.Module]:
    """Fresh pieces of one insertion for one task, or for all."""
    options = insertion.delta.options
    if insertion.delta.kind == "prefix":
        attentions = [p for p in places if isinstance(p, Attention)]
        pieces: list[nn.Module] = [
            prefix_at(options, a, gated=insertion.gate is not None) for a in attentions
        ]
        if options.reparam is not None:
            pieces.append(reparameterization(options, attentions, sites))
        return pieces
    kind = piece_class(insertion.delta.kind)
    return [
        kind.at(options_at(insertion, p, sites), reading_width(insertion, p), p.width)  # type: ignore[union-attr]
        for p in places
    ]


def own_gates(
    insertion: Insertion, places: Sequence[Site | Attention], sites: Sites
) -> list[nn.Module]:
    """Fresh gates of one insertion for one task, or for all."""
    options = insertion.gate
    kind = Gate if insertion.composition.kind == "gate" else Valve
    made: list[nn.Module] = []
    for place in places:
        if isinstance(place, Attention):
            made.append(kind(options.init, in_width=queries_of(place, sites).in_width))
            continue
        width = place.width if options.per == "channel" else None
        read = {"none": None, "x": place.in_width or place.width}.get(options.reads, place.width)
        made.append(kind(options.init, width, read))
    return made


def queries_of(attention: Attention, sites: Sites) -> Site:
    """The site of an attention's queries.

    Raises:
        LookupError: where they come from no projection.
    """
    role = attention.role.replace(".kv", ".q")
    place = (role, attention.layer, attention.stack)
    for site in sites.sites:
        if (site.role, site.layer, site.stack) == place and site.x is not None:
            return site
    raise LookupError(f"{attention.module} has no projection of queries")


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
    """The MLP that makes the keys and values of all sites, as wide as the token embeddings.

    Where no tokens are embedded, as in an image model, it is as wide as the queries.
    """
    shapes = [s for a in attentions for s in Prefix(
        options.tokens, a.heads, a.kv_heads, a.head_dim, a.value_dim, own=False
    ).shapes]  # fmt: skip
    queries = attentions[0].heads * attentions[0].head_dim
    width = next((e.site.width for e in sites.embeddings), queries)
    return Reparameterization(
        shapes, options.tokens, width, options.reparam.hidden, options.reparam.act
    )
