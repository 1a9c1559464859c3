"""Plan -> passes: which rewrites carry a plan out, with fresh pieces, in their order."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peftc.build import build_gates, build_pieces, queries_of
from peftc.capture.program import attribute
from peftc.dataflow.site import Attention, Sites
from peftc.passes.base import Pass
from peftc.passes.ensemble import Combine, RepeatInputs
from peftc.passes.infix import Infix
from peftc.passes.insert import Insert
from peftc.passes.positions import ShiftPositions
from peftc.passes.prefix import InsertPrefix
from peftc.passes.prompt import InsertPrompt
from peftc.passes.tasks import AddHeads, AddTaskIds
from peftc.passes.unfreeze import Unfreeze
from peftc.pieces import piece_class
from peftc.pieces.bank import ShiftedRows
from peftc.planned import Plan, Planned
from peftc.words import plain_token


def passes_of(plan: Plan, seed: int, *, numbers: bool = True) -> list[Pass]:
    """The passes that carry out `plan`, with pieces drawn under `seed` alone.

    Without `numbers` the pieces take no memory: enough to see what the passes make of the graph.
    """
    where = nullcontext() if numbers else torch.device("meta")
    with torch.random.fork_rng(devices=[]), where:
        torch.manual_seed(seed)
        passes = [p for planned in plan.insertions for p in passes_for(planned, plan)]
        heads = [(h.task, h.options, h.reads, h.build()) for h in plan.heads]
    passes = around(passes, plan) + shifts(plan)
    if plan.tasks and any(p.insertion.share == "per_task" for p in plan.insertions):
        passes.insert(0, AddTaskIds(plan.tasks))
    if heads:
        for *_, head in heads:
            put(head, plan.sites.program.graph.output_node().args[0][0])  # type: ignore[index]
        passes.append(AddHeads(heads))  # type: ignore[arg-type]
    if plan.unfrozen:
        passes.append(Unfreeze(plan.unfrozen))
    return passes


def passes_for(planned: Planned, plan: Plan) -> list[Pass]:
    """The passes of one insertion: which kind follows from how it composes."""
    insertion, sites = planned.insertion, plan.sites
    pieces = build_pieces(insertion, planned.places, sites, plan.tasks)
    gates = build_gates(insertion, planned.places, sites, plan.tasks)
    own = insertion.variants(plan.tasks)
    move(pieces, planned)
    move(gates, planned)
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


def move(pieces: list[nn.Module], planned: Planned) -> None:
    """Put pieces, and a network that makes them, where the values at their places live."""
    for piece, place in zip(pieces, [*planned.places, planned.places[0]], strict=False):
        put(piece, place.k if isinstance(place, Attention) else place.h)


def put(piece: nn.Module, node: fx.Node) -> None:
    """Put a module where a node's value lives, in its dtype."""
    value = node.meta["val"]
    if any(p.is_meta for p in piece.parameters()):
        imagine(piece, value)
    else:
        piece.to(device=value.device, dtype=value.dtype)


def imagine(piece: nn.Module, value: Tensor) -> None:
    """Let a module's meta tensors be fake ones, as if they were where `value` is, in its dtype."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in piece.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                made = torch.empty(p.shape, dtype=value.dtype, device=value.device)
                setattr(module, name, nn.Parameter(made))
            for name, b in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(b.shape, dtype=b.dtype, device=value.device))
