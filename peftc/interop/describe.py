"""Pieces at places -> a spec that a person reads: roles where they say it, else module globs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from peftc.dataflow.select import module_paths
from peftc.dataflow.site import Attention, Sites
from peftc.interop.draft import Draft, Found, Places, key_of
from peftc.spec import Spec, load_spec
from peftc.spec.catalogue import names
from peftc.spec.insertion import ROLES


def spec_of_draft(draft: Draft, places: Places, about: str) -> Spec:
    """The spec of a draft: an insertion for each set of options, and what else was trained."""
    groups: dict[str, list[Found]] = {}
    for piece in draft.pieces:
        options = json.dumps([piece.delta, piece.compose, piece.more], sort_keys=True)
        groups.setdefault(options, []).append(piece)
    entries: list[dict[str, Any]] = []
    for pieces in groups.values():
        wanted = {key_of(p.place): p for p in pieces}
        for where in places_of(wanted, places):
            first = pieces[0]
            name = draft.name if not entries else f"{draft.name}_{len(entries) + 1}"
            entries.append(
                {"id": name, **where, **first.more, "delta": first.delta, "compose": first.compose}
            )
    data: dict[str, Any] = {"peftc": 1, "name": draft.name, "about": about, "insert": entries}
    if draft.base:
        data["unfreeze"] = unfrozen(draft, places.sites)
    return load_spec(data)


def places_of(wanted: Mapping[Any, Found], places: Places) -> list[dict[str, Any]]:
    """`at`, `layers` and `stack` of the insertions that together name exactly some places."""
    sites, left = places.sites, dict(wanted)
    found: dict[tuple[str, Any], list[Any]] = {}
    stacks = ["any", *sorted(s for s in sites.layers if s)] if len(sites.layers) > 1 else ["any"]
    for stack in stacks:
        for role in ROLES:
            if role == "embed.out" and stack == "any" and len(sites.starts) > 1:
                continue  # which means the first stack's alone
            all_of = [
                p
                for p in (*sites.sites, *sites.attentions)
                if p.role == role and stack in ("any", p.stack)
            ]
            layers = whole_layers(all_of, left, stack, sites)
            if layers is None:
                continue
            for p in all_of:
                left.pop(key_of(p), None)
            found.setdefault((stack, json.dumps(layers)), []).append(role)
    result = []
    for (stack, layers), roles in found.items():
        entry: dict[str, Any] = {"at": roles[0] if len(roles) == 1 else roles}
        if json.loads(layers) != "all":
            entry["layers"] = json.loads(layers)
        if stack != "any":
            entry["stack"] = stack
        result.append(entry)
    if left:
        modules = globs(left, places)
        everywhere = next((e for e in result if e.keys() == {"at"}), None)
        if everywhere is None:
            result.append({"at": modules})
        else:
            roles = everywhere["at"]
            everywhere["at"] = [*([roles] if isinstance(roles, str) else roles), *modules]
    return result


def whole_layers(
    all_of: list[Any], left: Mapping[Any, Found], stack: str, sites: Sites
) -> str | list[int] | None:
    """The layers in which every place of a role is wanted; None where that is not clean.

    Not clean: no layer at all, or one of which only a part is wanted, or layers of several stacks.
    """
    inside: dict[Any, list[bool]] = {}
    for p in all_of:
        inside.setdefault((p.stack, p.layer), []).append(key_of(p) in left)
    whole = [k for k, present in inside.items() if all(present)]
    if not whole or any(any(v) for k, v in inside.items() if k not in whole):
        return None
    if len(whole) == len(inside):
        return "all"
    if stack == "any" and len({s for s, _ in inside}) > 1:
        return None
    numbers = sorted(layer for _, layer in whole if layer is not None)
    if not numbers:
        return None
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return numbers


def globs(left: Mapping[Any, Found], places: Places) -> list[dict[str, str]]:
    """Module globs that match exactly the wanted modules; paths as they are where none does."""
    ends: dict[str, set[str]] = {}
    for piece in left.values():
        place = piece.place
        if isinstance(place, Attention):
            raise RuntimeError(f"{place.name} has no module")
        ends.setdefault("input" if place.own else "output", set()).add(place.module)
    paths = module_paths(places.program)
    result = []
    for end, wanted in ends.items():
        more = {} if end == "output" else {"end": end}
        while wanted:
            path = min(wanted)
            glob = ".".join("*" if part.isdigit() else part for part in path.split("."))
            matched = {p for p in paths if fnmatchcase(p, glob)}
            chosen = glob if matched <= wanted else path
            wanted -= matched if chosen == glob else {path}
            result.append({"module": chosen, **more})
    return result


def unfrozen(draft: Draft, sites: Sites) -> list[dict[str, Any]]:
    """Entries of `unfreeze` that name exactly the base parameters of a draft."""
    left, entries = set(draft.base), []
    for role in ("head", "bias", "norm", "embed"):
        of_role = set(sites.parameters.get(role, ()))
        if of_role and of_role <= left:
            entries.append({"role": role})
            left -= of_role
    parameters = [n for n, _ in sites.program.named_parameters()]
    while left:
        name = min(left)
        glob = ".".join("*" if part.isdigit() else part for part in name.split("."))
        matched = {n for n in parameters if fnmatchcase(n, glob)}
        chosen = glob if matched <= set(draft.base) else name
        left -= matched if chosen == glob else {name}
        entries.append({"parameter": chosen})
    return entries


def equals_preset(spec: Spec) -> str | None:
    """The shipped spec that this one equals, as text, dropouts and names aside; or None."""
    if len(spec.insert) != 1:
        return None
    mine = comparable(spec)
    sizes = {k: v for k, v in mine["delta"][spec.insert[0].delta.kind].items() if type(v) is int}
    scale = mine["compose"].get("add", {}).get("scale") or mine["delta"].get("dora", {}).get(
        "scale"
    )
    if scale is not None and "rank" in sizes:
        alpha = scale * sizes["rank"]
        sizes["alpha"] = int(alpha) if float(alpha).is_integer() else alpha
    for name in names():
        own = load_spec(name).vars
        given = {k: v for k, v in sizes.items() if k in own}
        other = load_spec(name, set=given)
        if len(other.insert) == 1 and comparable(other) == mine:
            values = ", ".join(f"{k}={v}" for k, v in given.items())
            return f"`{name}`" + (f" with {values}" if values else "")
    return None


def comparable(spec: Spec) -> dict[str, Any]:
    """The one insertion of a spec as data, without what changes no output."""
    data = spec.insert[0].model_dump(mode="json", exclude_none=True)
    data["delta"] = {k: dict(v) for k, v in data["delta"].items() if isinstance(v, dict)}
    for options in data["delta"].values():
        options.pop("dropout", None)
        options.pop("init", None)
    return {k: v for k, v in data.items() if k not in ("id", "optional")}
