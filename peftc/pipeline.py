"""Plan -> passes -> Program: runs the rewrites, checks the graph after each, says what changed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from peftc.build import build_gates, build_pieces, queries_of
from peftc.capture.listing import difference, listing
from peftc.capture.program import Program, attribute
from peftc.dataflow.site import Sites
from peftc.diagnostics import error
from peftc.passes.base import DEFERRED, Pass
from peftc.passes.drop_dropout import DropDropout
from peftc.passes.ensemble import Combine, RepeatInputs
from peftc.passes.fold_dora import FoldDora
from peftc.passes.fold_low_rank import FoldLowRank
from peftc.passes.fold_prefix import FoldPrefix
from peftc.passes.fold_reparam import FoldReparam
from peftc.passes.fold_scale import FoldScale
from peftc.passes.fold_vector import FoldVector
from peftc.passes.infix import Infix
from peftc.passes.insert import Insert
from peftc.passes.prefix import InsertPrefix, ShiftPositions
from peftc.passes.prompt import InsertPrompt
from peftc.passes.select_task import SelectTask
from peftc.passes.tasks import AddHeads, AddTaskIds
from peftc.passes.unfreeze import Unfreeze
from peftc.pieces import piece_class
from peftc.pieces.bank import ShiftedRows
from peftc.planned import Plan, Planned
from peftc.words import plain_token

# What passes note on nodes for one another, and nothing after them reads.
MARKS = ("replaced_by", "replaced_for", "parallel", "lengthens", "stale")


@dataclass(frozen=True)
class Report:
    """What one pass did: the lines of the graph that changed, and the seconds it took."""

    name: str
    difference: tuple[str, ...]
    seconds: float

    @property
    def modified(self) -> bool:
        """Whether the graph changed."""
        return bool(self.difference)


@dataclass
class Pipeline:
    """Runs passes over one Program, in place, and collects their reports."""

    program: Program
    reports: list[Report] = field(default_factory=list)

    def run(self, passes: Iterable[Pass]) -> Program:
        """Run every pass and check the graph after it; recompile once at the end.

        Raises:
            RuntimeError: where a pass broke an invariant, which is a fault of this package.
        """
        before = listing(self.program)
        for p in passes:
            start = time.perf_counter()
            try:
                p.run(self.program)
            except (RuntimeError, IndexError) as cause:
                raise not_possible(p, self.program, cause) from cause
            after = listing(self.program)
            check(self.program, p)
            seconds = time.perf_counter() - start
            self.reports.append(Report(p.name, tuple(difference(before, after)), seconds))
            before = after
        for node in self.program.graph.nodes:
            for mark in MARKS:
                node.meta.pop(mark, None)
        self.program.recompile()
        return self.program


def not_possible(p: Pass, program: Program, cause: Exception) -> Exception:
    """E111: the shapes of this graph do not allow the rewrite."""
    first = next((t.strip() for t in str(cause).splitlines() if t.strip()), "")
    length = program.signature.static_length
    return error(
        "E111",
        f"{p.name}: the graph of {program.signature.model_class} does not allow it",
        notes=(
            *([f"it is captured for exactly {length} tokens"] if length else []),
            f"{type(cause).__name__}: {first}"[:300],
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
    names = tuple(n.name for n in program.graph.nodes if n.op == "placeholder")
    returned = program.graph.output_node().args[0]
    signature = program.signature
    if names != tuple(i.name for i in signature.inputs) or len(returned) != len(signature.outputs):  # type: ignore[arg-type]
        raise RuntimeError(f"after {p.name}: the graph no longer has its signature")
    for node, i in zip(program.graph.nodes, signature.inputs, strict=False):
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
    pipeline = Pipeline(program)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shared = [i for i in plan.insertions if i.insertion.share == "per_task"]
        passes = [p for planned in plan.insertions for p in passes_for(planned, plan)]
        heads = [(h.task, h.options, h.reads, h.build()) for h in plan.heads]
    passes = around(passes, plan) + shifts(plan)
    if shared and plan.tasks:
        passes.insert(0, AddTaskIds(plan.tasks))
    if heads:
        for *_, head in heads:
            put(head, plan.sites.program.graph.output_node().args[0][0])  # type: ignore[index]
        passes.append(AddHeads(heads))  # type: ignore[arg-type]
    if plan.unfrozen:
        passes.append(Unfreeze(plan.unfrozen))
    pipeline.run(passes)
    return program, pipeline.reports


def passes_for(planned: Planned, plan: Plan) -> list[Pass]:
    """The passes of one insertion: which kind follows from how it composes."""
    insertion, sites = planned.insertion, plan.sites
    pieces = build_pieces(insertion, planned.places, sites, plan.tasks)
    gates = build_gates(insertion, planned.places, sites, plan.tasks)
    own = insertion.variants(plan.tasks)
    move(pieces, planned, plan.sites.program)
    move(gates, planned, plan.sites.program)
    options = insertion.delta.options
    if insertion.composition.kind == "attend":
        reparam = pieces.pop() if options.reparam is not None else None
        lengths = [i.delta.options.tokens for i in own.values()]
        cached = options.mask == "cached"
        queries = [queries_of(p, sites) for p in planned.places] if gates else []  # type: ignore[arg-type]
        return [
            InsertPrefix(
                insertion.id, planned.places, pieces, lengths, reparam, cached,  # type: ignore[arg-type]
                gates, queries, infix_of(options.before, sites),  # type: ignore[arg-type]
            )
        ]  # fmt: skip
    if insertion.composition.kind == "prepend":
        return [prompt_pass(planned, plan, k, piece) for k, piece in enumerate(pieces)]
    reads = insertion.reads or "h"
    reads_input = piece_class(insertion.delta.kind).reads_input
    scales = [float(getattr(i.composition.options, "scale", 1)) for i in own.values()]
    return [
        Insert(
            insertion.id, planned.places, pieces, reads, insertion.composition, reads_input,  # type: ignore[arg-type]
            gates, insertion.gate.reads if gates else "none", scales,  # type: ignore[arg-type]
        )
    ]  # fmt: skip


def around(passes: list[Pass], plan: Plan) -> list[Pass]:
    """The passes of all insertions, those of an ensemble's rows before and behind them."""
    for planned in plan.insertions:
        options = planned.insertion.delta.options
        if members := getattr(options, "ensemble", None):
            combine = Combine(planned.insertion.id, members, options.vote)
            return [RepeatInputs(members), *passes, combine]
    return passes


def prompt_pass(planned: Planned, plan: Plan, k: int, piece: nn.Module) -> Pass:
    """The pass of one prompt."""
    place, insertion = planned.places[k], planned.insertion
    embedding = next(e for e in plan.sites.embeddings if e.site is place)
    table = attribute(plan.sites.program, embedding.table)
    dummy = plain_token(plan.sites.program.signature.config, table.shape[0])
    compose = insertion.composition.options
    return InsertPrompt(
        insertion.id, embedding, plan.sites, piece, dummy,  # type: ignore[arg-type]
        trim=compose.trim, padding=compose.padding == "ids",
    )  # fmt: skip


def infix_of(before: int | None, sites: Sites) -> Infix | None:
    """The place inside the sequence that a prefix asks for, if it does."""
    if before is None:
        return None
    return Infix(before, {e.site.stack: e for e in sites.embeddings})


def shifts(plan: Plan) -> list[Pass]:
    """One shift a stack and place: as many positions as one self-attention has shifting tokens.

    Where tasks have prefixes of different lengths, each row is shifted by its own task's.
    """
    counts: dict[tuple[str, int | None], dict[str, list[int]]] = {}
    targets: dict[tuple[str, int | None], str] = {}
    for planned in plan.insertions:
        options = planned.insertion.delta.options
        if planned.insertion.composition.kind != "attend" or options.positions != "shift":
            continue
        own = planned.insertion.variants(plan.tasks)
        tokens = [own.get(t, planned.insertion).delta.options.tokens for t in plan.tasks or ("",)]
        for place in planned.places:
            if place.role == "attn.kv":
                key = (place.stack, options.before)
                there = counts.setdefault(key, {})
                before = there.get(place.name, [0] * len(tokens))
                there[place.name] = [a + b for a, b in zip(before, tokens, strict=True)]
                name = "_".join(t for t in ("shift", place.stack) if t)
                targets.setdefault(key, f"peft.{planned.insertion.id}.{name}")
    made: list[Pass] = []
    for (stack, before), there in counts.items():
        tokens = [max(sizes) for sizes in zip(*there.values(), strict=True)]
        by = tokens[0] if len(set(tokens)) == 1 else ShiftedRows(tokens)
        if entered := [p for p in plan.sites.positions if p.stack == stack]:
            infix = infix_of(before, plan.sites)
            made.append(ShiftPositions(entered, by, infix, targets[stack, before]))
    return made


def move(pieces: list[nn.Module], planned: Planned, program: Program) -> None:
    """Put pieces where the values at their places live, in their dtype."""
    for piece, place in zip(pieces, [*planned.places, planned.places[0]], strict=False):
        put(piece, place.k if hasattr(place, "k") else place.h)  # type: ignore[union-attr]


def put(piece: nn.Module, node: fx.Node) -> None:
    """Put a module where a node's value lives, in its dtype."""
    value = node.meta["val"]
    piece.to(device=value.device, dtype=value.dtype)


def select_task(program: Program, task: str) -> tuple[Program, list[Report]]:
    """A copy of `program` for one of its tasks alone: its pieces, its head, no `task_ids`.

    Raises:
        PeftcError: E106 for a task that the graph does not have.
    """
    program.signature.for_task(task)
    pipeline = Pipeline(program.clone(pieces=True))
    pipeline.run([SelectTask(task)])
    return pipeline.program, pipeline.reports


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
    pipeline = Pipeline(program.clone(pieces=True))
    if deferred:
        pipeline.program.meta[DEFERRED] = {}
    passes: list[Pass] = [DropDropout(), FoldReparam()]
    if constants:
        passes += [FoldPrefix(), FoldScale()]
    if merge:
        only = None if merge is True else merge
        # Twice: a vector may stand on an update's sum, and an update on a scaled linear.
        passes += [FoldDora(only), FoldLowRank(only), FoldVector(only), FoldLowRank(only)]
    pipeline.run(passes)
    return pipeline.program, pipeline.reports
