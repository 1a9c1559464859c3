"""Sites told apart: one for a value, and a name of its own for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import fx

from peftc.dataflow.site import Attention, Site

Place = TypeVar("Place", Site, Attention)


def numbered_path(path: str) -> str:
    """A module path as far as its first number: "encoder.layers.0"."""
    parts = path.split(".")
    number = next((k for k, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def distinct(sites: list[Site]) -> list[Site]:
    """One site for a value, with all its readers: a branch may join the stream in two sums."""
    found: dict[tuple[str, fx.Node], Site] = {}
    for site in sites:
        key = (site.role, site.h)
        before = found.get(key)
        if before is not None and before.width == site.width and rows_of(before) == rows_of(site):
            readers = tuple(dict.fromkeys((*before.readers, *site.readers)))
            found[key] = replace(before, readers=readers)
        else:
            found[key if before is None else (f"{site.role} {len(found)}", site.h)] = site
    return list(found.values())


def rows_of(site: Site) -> tuple[int, ...] | None:
    """The output features of a fused linear that a site is."""
    return site.weight.rows if site.weight is not None else None


def numbered(sites: list[Place]) -> list[Place]:
    """Sites of one role, stack and layer told apart by their order, so that names are unique."""
    seen: dict[str, int] = {}
    found: list[Place] = []
    for site in sites:
        seen[site.name] = seen.get(site.name, -1) + 1
        found.append(replace(site, order=seen[site.name]))
    return found
