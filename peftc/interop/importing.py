"""A checkpoint of another library and its base model -> the graph with its pieces in place."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peftc.capture import Program
from peftc.capture.piece_name import PieceName
from peftc.capture.program import attribute
from peftc.dataflow import find_sites
from peftc.ground.diagnostics import error
from peftc.interop.checkpoint import CONFIG, Checkpoint, read_checkpoint
from peftc.interop.describe import spec_of_draft
from peftc.interop.draft import Draft, Places, Reader, key_of
from peftc.planning.make import make_plan
from peftc.planning.plan import Plan
from peftc.rewrite.applied import APPLIED, Applied, Origin
from peftc.rewrite.apply import carried_out, program_of, reference_of


def import_checkpoint(checkpoint: str | Path | Checkpoint, model: Any) -> Program:
    """The graph of `model` with a checkpoint's pieces, equal to what the other library computes.

    `checkpoint` is a folder that HF PEFT saved (LoRA, IA3, prefix tuning, prompt tuning, p-tuning)
    or one with bottlenecks of the `adapters` library; `model` is its base, with the head of the
    task where the checkpoint has one. Every tensor of the file is used, or the import fails.

    Raises:
        PeftcError: E303 for damaged files, E310 to E314 where the folder is no checkpoint, has no
            equivalent, or does not belong to the model.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = opened(checkpoint)
    reader = reader_of(checkpoint)
    base = program_of(model, weights=True)
    places = Places(find_sites(base.clone()), checkpoint.folder)
    tensors = checkpoint.tensors()
    draft = reader.draft(checkpoint, dict(tensors), places)
    check_taken(draft, checkpoint)
    spec = spec_of_draft(draft, places, f"Imported: {reader.about}")
    plan = make_plan(spec, places.sites)
    graph = carried_out(plan, base, seed=0, reference=reference_of(model))
    fill(graph, plan, draft)
    applied: Applied = graph.meta[APPLIED]
    applied.origin = Origin(
        checkpoint.kind,
        checkpoint.config,
        keys=dict(draft.keys),
        same=dict(draft.same),
        dtypes={n: str(t.dtype).removeprefix("torch.") for n, t in tensors.items()},
        unused=draft.unused,
    )
    return graph


def opened(folder: str | Path) -> Checkpoint:
    """A checkpoint folder whose configuration can be carried over; no tensor is read.

    Raises:
        PeftcError: E303, E310, E311, E312 and E314.
    """
    checkpoint = read_checkpoint(folder)
    reader_of(checkpoint).check(checkpoint)
    return checkpoint


def readers() -> dict[str, Reader]:
    """The readers by the kinds that they read, found by walking this package."""
    import peftc.interop as package

    found: dict[str, Reader] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("from_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Reader) and "kinds" in vars(value):
                found |= dict.fromkeys(value.kinds, value())
    return found


def reader_of(checkpoint: Checkpoint) -> Reader:
    """The reader of a checkpoint's kind.

    Raises:
        PeftcError: E312 for a method without equivalent.
    """
    known = readers()
    if checkpoint.kind in known:
        return known[checkpoint.kind]
    what = f"peft_type {checkpoint.kind}" if checkpoint.kind else "no known method"
    raise error(
        "E312",
        f"{checkpoint.folder / CONFIG} is of {what}, which has no equivalent",
        help=(
            f"methods that can be imported: {', '.join(sorted(known))}",
            "merge it into the base with the library that made it, and start from that model",
        ),
    )


def check_taken(draft: Draft, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint without pieces: nothing of it would be left.

    Raises:
        PeftcError: E313.
    """
    if not draft.pieces:
        raise error(
            "E313",
            f"{checkpoint.weights} holds no tensor of the method that {CONFIG} names",
            help=("the two files belong to different checkpoints",),
        )


def fill(graph: Program, plan: Plan, draft: Draft) -> None:
    """Copy every tensor of a draft into the parameter that stands for it.

    Raises:
        PeftcError: E313 for another shape, for a dtype that would lose digits, or a place twice.
    """
    left = {key_of(p.place): p for p in draft.pieces}
    for planned in plan.insertions:
        for place in planned.places:
            piece = left.pop(key_of(place))
            target = str(PieceName(planned.insertion.id, place.name))
            own = dict(attribute(graph, target).named_parameters())
            absent = own.keys() ^ piece.tensors.keys()
            if absent:
                raise error("E313", f"{place.module}: {', '.join(sorted(absent))} is missing")
            for name, value in piece.tensors.items():
                copy(own[name], value, f"{place.module}, {name}")
    if left:
        where = ", ".join(p.place.module for p in left.values())
        raise RuntimeError(f"places of the checkpoint that the spec does not name: {where}")
    for name, value in draft.base.items():
        copy(attribute(graph, name), value, name)


def copy(parameter: nn.Parameter, value: Tensor, name: str) -> None:
    """One tensor into one parameter, every digit of it."""
    if parameter.shape != value.shape:
        raise error(
            "E313",
            f"{name} is {list(value.shape)} in the checkpoint, the model takes "
            f"{list(parameter.shape)}",
            help=("give the model that the checkpoint was made on",),
        )
    parameter.data.copy_(value)
    if not parameter.data.cpu().to(value.dtype).equal(value):
        mine, theirs = (str(t.dtype).removeprefix("torch.") for t in (parameter, value))
        raise error(
            "E313",
            f"{name} is {theirs} in the checkpoint and would lose digits in {mine}",
            help=(f"open the model with --dtype {theirs}",),
        )


def summary(graph: Program) -> Mapping[str, Any]:
    """What was imported, for people: tensors, places, and the shipped spec that it equals."""
    from peftc.interop.describe import equals_preset

    applied: Applied = graph.meta[APPLIED]
    return {
        "method": applied.origin.kind if applied.origin else None,
        "tensors": len(applied.origin.dtypes) if applied.origin else 0,
        "places": sum(len(i["sites"]) for i in applied.plan["insertions"]),
        "base": len(applied.plan["unfrozen"]),
        "equals": equals_preset(applied.spec),
    }
