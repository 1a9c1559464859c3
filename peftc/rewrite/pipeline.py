"""Passes over one Program, the graph checked after each: rewriting, folding, one task alone."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from peftc.capture.listing import difference, listing
from peftc.capture.program import Program
from peftc.capture.values import FixedSizes
from peftc.ground.diagnostics import PeftcError, error
from peftc.ground.machine import machine_error
from peftc.methods.fold_scale import FoldScale
from peftc.methods.prefix.fold import FoldPrefix
from peftc.methods.prefix.fold_reparam import FoldReparam
from peftc.passes.base import DEFERRED, Keeps, Pass
from peftc.passes.drop_dropout import DropDropout
from peftc.passes.folding import Merge
from peftc.passes.select_task import SelectTask
from peftc.planning.plan import Plan
from peftc.rewrite.schedule import passes_of

# What passes note on nodes for one another, and nothing after them reads.
MARKS = ("replaced_by", "replaced_for", "parallel", "lengthens", "stale")


@dataclass(frozen=True)
class Report:
    """What one pass did: the lines of the graph that changed, and the seconds it took."""

    name: str
    difference: tuple[str, ...]
    seconds: float


def run(program: Program, passes: Iterable[Pass]) -> list[Report]:
    """Run passes over `program`, in place, and check the graph after each; what each did.

    Raises:
        PeftcError: E111 where operations of the model do not take the new sizes, E110 and E120
            where a pass refuses the graph, E505 for want of memory.
        Exception: anything else out of a pass, which is a fault of this package.
    """
    reports = []
    before = listing(program)
    for p in passes:
        start = time.perf_counter()
        ends = ends_of(program)
        try:
            p.run(program)
        except FixedSizes as cause:
            raise not_possible(p, program, cause) from cause
        except (RuntimeError, MemoryError) as cause:
            if (found := machine_error(cause)) is not None:
                raise found from cause
            raise
        seconds = time.perf_counter() - start
        check(program, p)
        if p.keeps is not Keeps.NOTHING and ends_of(program) != ends:
            raise RuntimeError(f"{p.name} changed the signature that it promises to keep")
        after = listing(program)
        reports.append(Report(p.name, tuple(difference(before, after)), seconds))
        before = after
    for node in program.graph.nodes:
        for mark in MARKS:
            node.meta.pop(mark, None)
    program.recompile()
    return reports


def ends_of(program: Program) -> tuple[Any, Any]:
    """The inputs and outputs of a program."""
    return program.signature.inputs, program.signature.outputs


def not_possible(p: Pass, program: Program, cause: FixedSizes) -> PeftcError:
    """E111: the shapes of this graph do not allow the rewrite."""
    length = program.signature.static_length
    module = cause.node.meta.get("module")
    return error(
        "E111",
        f"{p.name}: the graph of {program.signature.model_class} does not allow it",
        notes=(
            *([f"it is captured for exactly {length} tokens"] if length else []),
            f"{f'in {module}, ' if module else ''}{cause}",
        ),
        help=("an adapter, LoRA or a vector changes no sizes",),
    )


def check(program: Program, p: Pass) -> None:
    """The invariants: a well-formed graph, a value on every node, the signature as it was."""
    program.graph.lint()
    missing = [
        n.name for n in program.graph.nodes if n.op != "output" and n.meta.get("val") is None
    ]
    if missing:
        raise RuntimeError(f"after {p.name}: nodes without a value: {', '.join(missing[:5])}")
    inputs = program.graph.find_nodes(op="placeholder")
    names = tuple(n.name for n in inputs)
    returned = program.graph.output_node().args[0]
    signature = program.signature
    if names != tuple(i.name for i in signature.inputs) or len(returned) != len(signature.outputs):  # type: ignore[arg-type]
        raise RuntimeError(f"after {p.name}: the graph no longer has its signature")
    for node, i in zip(inputs, signature.inputs, strict=True):
        fixed = [
            d
            for size, d in zip(node.meta["val"].shape, i.dims, strict=True)
            if isinstance(d, str) and str(size).isdigit()
        ]
        if fixed:
            raise RuntimeError(f"after {p.name}: {i.name} lost its free axes {', '.join(fixed)}")


def rewrite(plan: Plan, *, seed: int = 0) -> tuple[Program, list[Report]]:
    """Carry out `plan` on the Program its sites belong to, in place.

    Fresh pieces are drawn under `seed`, whatever the global random state is.
    """
    program = plan.sites.program
    program.signature = replace(program.signature, longest=plan.longest)
    return program, run(program, passes_of(plan, seed))


def attempt(plan: Plan) -> None:
    """Refuse what `rewrite` would refuse: the passes run on the plan's program, without numbers.

    The program is used up. Pieces are on the meta device: nothing is drawn, no memory is taken.

    Raises:
        PeftcError: as `rewrite`, word for word.
    """
    run(plan.sites.program, passes_of(plan, seed=None))


def select_task(program: Program, task: str) -> tuple[Program, list[Report]]:
    """A copy of `program` for one of its tasks alone: its pieces, its head, no `task_ids`.

    Raises:
        PeftcError: E106 for a task that the graph does not have.
    """
    program.signature.for_task(task)
    alone = program.clone(pieces=True)
    return alone, run(alone, [SelectTask(task)])


def fold(
    program: Program,
    *,
    merge: bool | Collection[str] = True,
    constants: bool = True,
    deferred: bool = False,
) -> tuple[Program, list[Report]]:
    """A copy of `program` that is cheaper to run and gives the same outputs.

    Dropouts and reparameterisations go. With `constants`, scales and gates go into the pieces'
    own weights and prefixes are repeated over heads. With `merge`, low-rank updates and vectors
    go into the frozen weights next to them, all or those of the insertions named: weights that
    change have storage of their own, or with `deferred` wait in the copy's meta.
    """
    folded = program.clone(pieces=True)
    return folded, fold_in_place(folded, merge=merge, constants=constants, deferred=deferred)


def fold_in_place(
    program: Program,
    *,
    merge: bool | Collection[str] = True,
    constants: bool = True,
    deferred: bool = False,
) -> list[Report]:
    """As `fold`, on `program` itself and its pieces."""
    if deferred:
        program.meta[DEFERRED] = {}
    passes: list[Pass] = [DropDropout(), FoldReparam()]
    if constants:
        passes += [FoldPrefix(), FoldScale()]
    if merge:
        passes.append(Merge(None if merge is True else merge))
    return run(program, passes)
