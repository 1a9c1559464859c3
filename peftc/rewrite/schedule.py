"""Plan -> passes: which rewrites carry a plan out, with fresh pieces, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

from peftc.capture.piece_name import Part, PieceName
from peftc.capture.program import attribute
from peftc.dataflow.site import Attention, Embedding, Site, Sites
from peftc.methods.prompt.module import Prompt
from peftc.methods.registry import piece_class
from peftc.passes.base import Pass
from peftc.passes.ensemble import Combine, RepeatInputs
from peftc.passes.infix import Infix
from peftc.passes.insert import Insert
from peftc.passes.lengthen import Lengthen
from peftc.passes.positions import ShiftPositions
from peftc.passes.prefix import InsertPrefix
from peftc.passes.prompt import InsertPrompt
from peftc.passes.rows import InsertRows
from peftc.passes.tasks import AddHeads, AddTaskIds
from peftc.passes.trim import Trim
from peftc.passes.unfreeze import Unfreeze
from peftc.pieces.bank import Bank, ShiftedRows, members
from peftc.planning.build import build_gates, build_pieces, queries_of
from peftc.planning.longest import shifts_of
from peftc.planning.plan import Plan, Planned
from peftc.rewrite.tokens import plain_token


def passes_of(plan: Plan, seed: int | None) -> list[Pass]:
    """The passes that carry out `plan`, with pieces drawn under `seed` alone.

    Without a seed the pieces are on the meta device: they have sizes and no numbers.
    """
    rooms = rooms_of(plan)
    with torch.device("meta") if seed is None else drawn_under(seed):
        passes = [p for planned in plan.insertions for p in passes_for(planned, plan, rooms)]
        # Rows are followed through the model's own operations, before pieces stand among them.
        passes.sort(key=lambda p: not isinstance(p, InsertRows))
        heads = [(h.task, h.options, h.reads, h.build()) for h in plan.heads]
    trims = [Trim(room) for room in rooms.values() if room.trim]
    passes = around([*rooms.values(), *passes, *shifts(plan), *trims], plan)
    if plan.tasks and any(p.insertion.share == "per_task" for p in plan.insertions):
        passes.insert(0, AddTaskIds(plan.tasks))
    if heads:
        for *_, head in heads:
            put(head, plan.sites.program.graph.output_node().args[0][0])  # type: ignore[index]
        passes.append(AddHeads(heads))  # type: ignore[arg-type]
    if plan.unfrozen:
        passes.append(Unfreeze(plan.unfrozen))
    return passes


@contextmanager
def drawn_under(seed: int) -> Iterator[None]:
    """Random numbers from a seed, whatever the global random state is and without changing it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def passes_for(planned: Planned, plan: Plan, rooms: dict[str, Lengthen]) -> list[Pass]:
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
        embedded = [e.site for e in sites.embeddings]
        return [
            prompt_pass(
                planned, plan, place, rooms[place.stack] if place in embedded else None, piece  # type: ignore[arg-type]
            )
            for place, piece in zip(planned.places, pieces, strict=True)
        ]  # fmt: skip
    reads = insertion.reads or "h"
    reads_input = piece_class(insertion.delta.kind).reads_input
    scales = [float(getattr(i.composition.options, "scale", 1)) for i in own.values()]
    return [
        Insert(
            insertion.id, planned.places, pieces, reads, insertion.composition, reads_input,  # type: ignore[arg-type]
            gates, insertion.gate.reads if gates else "none", scales,  # type: ignore[arg-type]
            *prompts_around(planned, plan, rooms),
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


def rooms_of(plan: Plan) -> dict[str, Lengthen]:
    """By stack, the pass that makes room for all of its prompts."""
    found: dict[str, Lengthen] = {}
    for embedding, prompts in prompts_of(plan):
        table = attribute(plan.sites.program, embedding.table)
        compose = prompts[0].insertion.composition.options
        ahead = [p.insertion.delta.options for p in prompts]
        found[embedding.site.stack] = Lengthen(
            embedding,
            plan.sites,
            sum(o.tokens for o in ahead if o.place == "before"),
            sum(o.tokens for o in ahead if o.place == "after_first"),
            plain_token(plan.sites.program.signature.config, table.shape[0]),
            trim=compose.trim,
            padding=compose.padding == "ids",
        )
    return found


def prompts_of(plan: Plan) -> list[tuple[Embedding, list[Planned]]]:
    """Every embedding that has prompts, with them in the order of the spec."""
    prompts = [p for p in plan.insertions if p.insertion.composition.kind == "prepend"]
    by_embedding = [(e, [p for p in prompts if e.site in p.places]) for e in plan.sites.embeddings]
    return [(embedding, own) for embedding, own in by_embedding if own]


def prompts_around(
    planned: Planned, plan: Plan, rooms: dict[str, Lengthen]
) -> tuple[list[Lengthen], list[Lengthen]]:
    """The rooms with a prompt before an insertion in the spec, and those that get one later."""
    at = plan.insertions.index(planned)
    earlier, later = plan.insertions[:at], plan.insertions[at:]
    found = [(rooms[e.site.stack], own) for e, own in prompts_of(plan)]
    return (
        [room for room, own in found if any(p in earlier for p in own)],
        [room for room, own in found if any(p in later for p in own)],
    )


def prompt_pass(
    planned: Planned, plan: Plan, site: Site, room: Lengthen | None, piece: Prompt | Bank
) -> Pass:
    """The pass of one prompt: its rows stand behind those of earlier prompts at the same place.

    Where ids are read there is room for all prompts at once; rows beside patches and frames are
    inserted one prompt after the other.
    """
    prompts = [p for p in plan.insertions if p.insertion.composition.kind == "prepend"]
    earlier = [
        p.insertion.delta.options for p in prompts[: prompts.index(planned)] if site in p.places
    ]
    place = planned.insertion.delta.options.place
    first = sum(o.tokens for o in earlier if o.place == place)
    if place == "after_first":
        ahead = sum(o.tokens for o in earlier if o.place == "before")
        first += 1 + (ahead if room is None else room.before)
    for prompt in members(piece):
        prompt.first = first
    if room is None:
        return InsertRows(planned.insertion.id, site, plan.sites.ends[site.stack], piece)
    return InsertPrompt(planned.insertion.id, room, piece)


def infix_of(before: int | None, sites: Sites) -> Infix | None:
    """The place inside the sequence that a prefix asks for, if it does."""
    if before is None:
        return None
    return Infix(before, {e.site.stack: e for e in sites.embeddings})


def shifts(plan: Plan) -> list[Pass]:
    """One shift a stack and place: as many positions as one self-attention has shifting tokens.

    Where tasks have prefixes of different lengths, each row is shifted by its own task's.
    """
    made: list[Pass] = []
    for (stack, before), shift in shifts_of(plan.insertions, plan.tasks).items():
        tokens = shift.tokens
        by = tokens[0] if len(set(tokens)) == 1 else ShiftedRows(tokens)
        name = PieceName(shift.insertion, stack, Part.SHIFT)
        if entered := [p for p in plan.sites.positions if p.stack == stack]:
            infix = infix_of(before, plan.sites)
            made.append(ShiftPositions(entered, by, infix, str(name)))
    return made


def move(pieces: list[nn.Module], planned: Planned) -> None:
    """Put pieces, and a network that makes them, where the values at their places live."""
    for piece, place in zip(pieces, [*planned.places, planned.places[0]], strict=False):
        put(piece, place.k if isinstance(place, Attention) else place.h)


def put(piece: nn.Module, node: fx.Node) -> None:
    """Put a module where a node's value lives, in its dtype."""
    value = node.meta["val"]
    if any(t.is_meta for t in (*piece.parameters(), *piece.buffers())):
        piece.to(dtype=value.dtype)
    else:
        piece.to(device=value.device, dtype=value.dtype)
