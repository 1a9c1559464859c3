"""What is merged into frozen weights: what is to be, what will be, and what was. Asked here alone.

A spec says what is to be merged (`wanted`); the patterns of the fold passes decide what can be,
on the graph. What will be merged is therefore found by folding a graph without numbers
(`foreseen`), and what was merged by comparing the graph before with the graph after (`outcomes`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from peftc.capture.piece_name import piece_name
from peftc.capture.program import Program, attribute
from peftc.dataflow import find_sites
from peftc.ground.diagnostics import Diagnostic
from peftc.pieces.bank import Bank, members
from peftc.pieces.base import Piece
from peftc.pieces.gate import Gate
from peftc.planning.make import make_plan
from peftc.planning.plan import Plan
from peftc.rewrite import pipeline
from peftc.rewrite.schedule import passes_of
from peftc.spec import Spec

BANKED = "each task has a piece of its own there"


@dataclass(frozen=True)
class Outcome:
    """What folding made of one insertion.

    `sites`, `left`: at how many sites its pieces were, and still are. `numbers`, `kept`: how many
    numbers they and the networks that make them had, and still have. `merged`: nothing of the
    insertion is left in the graph. `why`: why what is left is apart.
    """

    id: str
    sites: int
    left: int
    numbers: int
    kept: int
    merged: bool
    why: str = ""


def wanted(spec: Spec | None) -> bool | list[str]:
    """What `export.fold` of a spec says is to be merged: all that can be, nothing, or these ids."""
    fold = spec.export.fold if spec is not None and spec.export is not None else "auto"
    return fold if isinstance(fold, list) else fold == "auto"


@dataclass(frozen=True)
class Standing:
    """What stands in a graph of one insertion: at how many sites, and how many numbers it has.

    Numbers are those of its pieces and of the networks that make them, without gates. `why`: why
    the first of its pieces is no part of a weight.
    """

    sites: int
    numbers: int
    why: str


def insertions(program: Program) -> dict[str, Standing]:
    """What stands in a graph of each insertion, by its id."""
    found: dict[str, list[Any]] = {}
    for node in program.graph.nodes:
        name = piece_name(node.target) if node.op == "call_module" else None
        if name is not None:
            found.setdefault(name.insertion, []).append(attribute(program, str(node.target)))
    return {name: standing(modules) for name, modules in found.items()}


def standing(modules: Collection[Any]) -> Standing:
    """What the modules of one insertion are: pieces or banks of them, networks and gates."""
    pieces = [m for m in modules if isinstance(members(m)[0], Piece)]
    own = [m for m in modules if not isinstance(members(m)[0], Gate)]
    numbers = sum(t.numel() for m in own for t in (*m.parameters(), *m.buffers()))
    why = next((BANKED if isinstance(m, Bank) else m.why_apart for m in pieces), Piece.why_apart)
    return Standing(len(pieces), numbers, why)


def outcomes(before: Mapping[str, Standing], after: Mapping[str, Standing]) -> list[Outcome]:
    """What became of each insertion, from what stood in the graph before and stands there after."""
    nothing = Standing(0, 0, "")
    found = []
    for name, was in before.items():
        now = after.get(name, nothing)
        if was.sites:
            sizes = was.sites, now.sites, was.numbers, now.numbers
            found.append(Outcome(name, *sizes, name not in after, now.why))
    return found


def foreseen(plan: Plan) -> list[Outcome]:
    """What an export will have merged of each insertion, from the graph itself without numbers.

    Raises:
        PeftcError: E111 where the graph does not allow the rewrite.
    """
    made = make_plan(plan.spec, find_sites(plan.sites.program.clone()))
    program = made.sites.program
    pipeline.run(program, passes_of(made, None))
    before = insertions(program)
    pipeline.fold_in_place(program, merge=wanted(plan.spec), constants=True, deferred=True)
    return outcomes(before, insertions(program))


def apart(spec: Spec, found: Collection[Outcome]) -> list[Diagnostic]:
    """W403: insertions that `export.fold` names and that are not merged, or not everywhere."""
    named = wanted(spec)
    if isinstance(named, bool):
        return []
    return [
        Diagnostic(
            "W403",
            f"`{o.id}` stays apart at {o.left} of {o.sites} sites: {o.why}",
            spec.span("export", "fold", named.index(o.id)),
            help=("`peftc export --task NAME` merges those of one",) if o.why == BANKED else (),
        )
        for o in found
        if o.id in named and not o.merged
    ]
