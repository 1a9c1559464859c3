"""The names of inserted modules: printed and parsed here alone.

    peft.<insertion>.<site>            the delta at a site
    peft.<insertion>.<site>_gate       its gate
    peft.<insertion>.<part>            what serves several sites: `reparam`, `mask`, ...
    peft.tasks.<task>                  the head of a task
    <one of these>.<task>              in a bank: the piece that one task has for itself

A name of a site never ends as a part does, except for the role `ffn.gate`, which stands behind
`ffn`; so what is printed is parsed to the same. `of_path` gives module paths such names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

from peftc.spec.insertion import ROLES

ROOT = "peft"
HEADS = "tasks"  # no insertion of a spec with tasks is called so


class Part(Enum):
    """Which module of an insertion a name means."""

    DELTA = ""
    GATE = "gate"
    KEPT = "gate_keep"  # 1 - g, where a gate was folded into a product and a sum
    REPARAM = "reparam"
    MASK = "mask"
    HIDE = "hide"
    SHIFT = "shift"
    MEAN = "mean"
    MAJORITY = "majority"


BEHIND_A_SITE = (Part.KEPT, Part.GATE)
OF_ALL_SITES = tuple(p for p in Part if p not in (Part.DELTA, *BEHIND_A_SITE))
STACKS = ("encoder", "decoder")
ROLE = re.compile(
    rf"(({'|'.join(STACKS)})_)?(layer\d+_)?({'|'.join(r.replace('.', '_') for r in ROLES)})(_\d+)?"
)


@dataclass(frozen=True)
class PieceName:
    """One inserted module: whose, at which site, which part of it, and for which task."""

    insertion: str
    site: str = ""  # of a part that serves all sites: the stack, where there are several
    part: Part = Part.DELTA
    task: str = ""  # of a bank, the task whose piece it is; "" for the bank, or where all share

    def __str__(self) -> str:
        """The path of the module in a Program."""
        if self.part in OF_ALL_SITES:
            last = "_".join(p for p in (self.part.value, self.site) if p)
        else:
            last = "_".join(p for p in (self.site, self.part.value) if p)
        return ".".join(p for p in (ROOT, self.insertion, last, self.task) if p)

    def of(self, part: Part) -> PieceName:
        """Another part at the same site."""
        return replace(self, part=part)


def piece_name(path: object) -> PieceName | None:
    """The name of an inserted module from its path, or from a path into it; None for others.

    What stands deeper than a site is a task where the module is a bank, which a path does not
    tell: `task` is left empty.
    """
    root, *parts = str(path).split(".")
    if root != ROOT or len(parts) < 2:
        return None
    insertion, last = parts[:2]
    if ROLE.fullmatch(last):
        return PieceName(insertion, last)
    for part in BEHIND_A_SITE:
        if last.endswith(f"_{part.value}"):
            return PieceName(insertion, last.removesuffix(f"_{part.value}"), part)
    for part in OF_ALL_SITES:
        for stack in ("", *STACKS):
            name = PieceName(insertion, stack, part)
            if str(name) == f"{ROOT}.{insertion}.{last}":
                return name
    return PieceName(insertion, last)


def is_inserted(path: object) -> bool:
    """Whether a module or a tensor at a path was inserted."""
    return str(path).startswith(f"{ROOT}.")


def container(insertion: str) -> str:
    """The path under which all modules of an insertion stand."""
    return f"{ROOT}.{insertion}"


def of_path(path: str) -> str:
    """The name of a site that is known by its module path: no name of a part, or with one."""
    name = path.replace(".", "_")
    alone = PieceName("id", name)
    while piece_name(alone) != alone or ROLE.fullmatch(f"{name}_{Part.GATE.value}"):
        name += "_"
        alone = PieceName("id", name)
    return name
