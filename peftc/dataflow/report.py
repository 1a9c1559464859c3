"""What a model offers to target, as rows for people."""

from __future__ import annotations

from typing import Any

from peftc.dataflow.site import Attention, Site, Sites

GOOD_FOR = {
    "embed.out": "prompt",
    "attn.q": "lora",
    "attn.k": "lora, ia3",
    "attn.v": "lora, ia3",
    "attn.kv": "prefix, ptuning2",
    "attn.heads": "adapter",
    "attn.out": "adapter",
    "cross.q": "lora",
    "cross.k": "lora",
    "cross.v": "lora",
    "cross.kv": "prefix",
    "cross.heads": "adapter",
    "cross.out": "adapter",
    "ffn.gate": "lora",
    "ffn.up": "lora",
    "ffn.act": "ia3",
    "ffn.down": "lora",
    "ffn.out": "adapter",
    "mixer.out": "adapter",
    "block.out": "adapter",
}


def report(sites: Sites) -> list[dict[str, Any]]:
    """One row a role and stack: its layers, sizes, and where it is in the model."""
    groups: dict[tuple[str, str], list[Site | Attention]] = {}
    for place in (*sites.sites, *sites.attentions):
        groups.setdefault((place.stack, place.role), []).append(place)
    order = {role: k for k, role in enumerate(GOOD_FOR)}
    rows = [row(role, stack, places) for (stack, role), places in groups.items()]
    return sorted(rows, key=lambda r: (r["stack"] == "decoder", order.get(r["site"], len(order))))


def row(role: str, stack: str, places: list[Site | Attention]) -> dict[str, Any]:
    """The row of one role."""
    first = places[0]
    layers = sorted({p.layer for p in places if p.layer is not None})
    fused = isinstance(first, Site) and first.weight is not None and first.weight.fused
    return {
        "site": role,
        "stack": stack,
        "count": len(places),
        "layers": spans(layers),
        "width": sizes(first),
        "where": where(places),
        "fused": fused,
        "good_for": GOOD_FOR.get(role, ""),
    }


def sizes(place: Site | Attention) -> str:
    """The sizes of a place: "768", "768 > 3072" for a projection, "8 x 64" for attention."""
    if isinstance(place, Attention):
        return f"{place.kv_heads} x {place.head_dim}"
    if place.weight is not None:
        return f"{place.in_width} > {place.width}"
    return str(place.width)


def where(places: list[Site | Attention]) -> str:
    """The module paths as one, layer numbers as {i}."""
    parts = [p.module.split(".") for p in places]
    if len({len(p) for p in parts}) != 1:
        return places[0].module
    return ".".join(one_name(names) for names in zip(*parts, strict=True))


def one_name(names: tuple[str, ...]) -> str:
    """Names at one level of several paths as one: "{i}" for numbers, "{a,b}" for others."""
    if len(set(names)) == 1:
        return names[0]
    return "{i}" if all(n.isdigit() for n in names) else f"{{{','.join(dict.fromkeys(names))}}}"


def spans(layers: list[int]) -> str:
    """Layer numbers as ranges: "0-11", "0-3, 5", or "-" for none."""
    if not layers:
        return "-"
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][-1] + 1:
            ranges[-1].append(layer)
        else:
            ranges.append([layer])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges)


def absent_roles(sites: Sites) -> list[str]:
    """Roles that this model does not have."""
    return [role for role in GOOD_FOR if role not in sites.roles]
