"""Artifacts: a folder with the resolved spec, the trained tensors and a lock, and its loading."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftc.artifact.base import (
    check_base,
    check_config,
    check_tokenizer,
    give,
    load_base,
    model_facts,
    stored_base,
    tell_unlike,
)
from peftc.artifact.card import card
from peftc.artifact.lock import LOCK, LOCK_FORMAT, SPEC, TENSORS, Lock, StoredTensor, read_lock
from peftc.capture import Program
from peftc.capture.fake import has_numbers
from peftc.capture.listing import fingerprint, listing
from peftc.capture.piece_name import is_inserted, piece_name
from peftc.capture.program import STORED
from peftc.capture.stored import fill_buffers
from peftc.ground.diagnostics import Diagnostic, error, warn
from peftc.ground.files import check_intact, sha256
from peftc.ground.output.staging import staged
from peftc.ground.records import sealed
from peftc.picture import page
from peftc.rewrite.applied import APPLIED, Applied, Origin, trained
from peftc.rewrite.apply import program_of, reference_of, rewritten
from peftc.spec import Spec, load_spec

GRAPH, PICTURE, CARD = "graph.txt", "graph.html", "README.md"
UNUSED = "unused.safetensors"  # what an imported checkpoint holds beside, for its export
READ = (TENSORS, SPEC, UNUSED)  # what a graph is made of; the other files are for people
PACKAGES = ("peftc", "torch", "transformers", "safetensors")


def save(graph: Program, folder: str | Path, *, force: bool = False) -> Path:
    """Write `graph` as an artifact: only its trained tensors, never the base.

    Raises:
        PeftcError: E306 where the folder exists, E307 where the graph does not come from `apply`,
            E316 to E318, E503 and E506 where it cannot be replaced or written.
    """
    folder = Path(folder)
    applied = graph.meta.get(APPLIED)
    with staged(folder, force=force, inputs=(applied and applied.reference,)) as partial:
        write_artifact(graph, partial)
    return folder


def write_artifact(graph: Program, folder: Path) -> None:
    """Write the files of an artifact into an existing folder.

    Raises:
        PeftcError: E307 where the graph does not come from `apply`.
    """
    applied: Applied | None = graph.meta.get(APPLIED)
    if applied is None:
        raise error(
            "E307",
            "only a graph that `apply` or `load` made can be saved",
            help=("save before folding; a folded graph is for `export`",),
        )
    tensors = {n: p.detach().contiguous().cpu() for n, p in trained(graph).items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    if applied.origin is not None and applied.origin.unused:
        save_file(applied.origin.unused, folder / UNUSED, metadata={"format": "pt"})
    facts: dict[str, Any] = {
        "format_version": LOCK_FORMAT,
        "model": model_facts(graph, applied),
        "seed": applied.seed,
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "tensors": {n: tensor_facts(t).model_dump() for n, t in tensors.items()},
        "graph_sha256": fingerprint(graph),
        "plan": applied.plan,
    }
    if applied.origin is not None:
        facts["origin"] = {k: v for k, v in vars(applied.origin).items() if k != "unused"}
    (folder / SPEC).write_text(applied.spec.to_yaml(), encoding="utf-8")
    (folder / GRAPH).write_text(listing(graph), encoding="utf-8")
    name = Path(facts["model"]["reference"] or facts["model"]["class"]).name
    (folder / PICTURE).write_text(page(applied.made, name), encoding="utf-8")
    (folder / CARD).write_text(card(facts, applied.spec, data=rows_for(graph)), encoding="utf-8")
    facts["sha256"] = {
        n: sha256(folder / n)
        for n in (TENSORS, UNUSED, SPEC, GRAPH, PICTURE, CARD)
        if (folder / n).is_file()
    }
    (folder / LOCK).write_text(json.dumps(sealed(facts), indent=1) + "\n", encoding="utf-8")
    tell_unlike(graph, applied.reference)


def tensor_facts(tensor: Tensor) -> StoredTensor:
    """What a lock says of a stored tensor."""
    return StoredTensor(
        dtype=str(tensor.dtype),
        shape=list(tensor.shape),
        finite=bool(tensor.isfinite().all()),
    )


def rows_for(graph: Program) -> str:
    """The options that give `peftc train` rows for this graph; "" where it has no head for them."""
    tasks, signature = graph.signature.tasks, graph.signature
    if len(tasks) > 1:
        return " ".join(f"--data {t}={t}.jsonl" for t in tasks)
    heads = tasks or (signature.loss is not None and signature.input("input_ids") is not None)
    return "--data train.jsonl" if heads else ""


def load(folder: str | Path, model: Any = None, *, weights: bool = True) -> Program:
    """Rebuild the graph of an artifact, bit for bit, on its base model.

    `model` is the base where it is not to be loaded from the place the lock names. Without
    `weights` a base that lies in safetensors files is never loaded: frozen weights are fake
    tensors, their files are compared with the lock by reading them once, and the graph is for
    `export`. A base that holds other weights than its files (a fresh head) is loaded after all.

    What does not change the graph is told by a warning: W110 for another tokenizer, W111 for an
    artifact of an older format, W112 for a changed picture or card.

    Raises:
        PeftcError: E301 for another base, E302 for tensors of another graph, E303 for a damaged
            file, E308 where the folder is no artifact, E320 for a lock and E321 for a spec that
            was changed, E322 for tensors that are not as the lock says, E323 where the base was
            changed in memory and never saved.
    """
    folder = Path(folder)
    lock = read_lock(folder)
    check_files(folder, lock)
    tensors = read_tensors(folder / TENSORS)
    check_tensors(tensors, lock, folder)
    stored = None if weights else stored_base(lock, folder, model)
    source = lock.model.reference if model is None else model
    if model is None or isinstance(model, str | Path):
        place = model
        model = load_base(lock, folder, place, fake=stored is not None)
        if stored is not None:
            fill_buffers(model, stored)
            if not all(has_numbers(b) for b in model.buffers()):  # drawn, and in no file
                stored, model = None, load_base(lock, folder, place)
    program = program_of(model, weights=True, static_length=lock.model.static_length)
    if stored is not None:
        program.meta[STORED] = stored
        give(program, tensors)
    spec, reference = load_spec(folder / SPEC), reference_of(model)
    graph = rewritten(spec, program, seed=lock.seed, reference=reference)
    check_base(graph, lock, folder)
    fill(graph, tensors, folder)
    applied: Applied = graph.meta[APPLIED]
    applied.reference = lock.model.reference or reference
    applied.random_weights = lock.model.random_weights
    if lock.origin is not None:
        unused = read_tensors(folder / UNUSED) if UNUSED in lock.sha256 else {}
        applied.origin = Origin(**lock.origin.model_dump(), unused=unused)
    check_graph(graph, lock, folder)
    check_config(graph, lock, folder)
    check_tokenizer(
        lock, folder, source if isinstance(source, str | Path) else reference,
        graph.signature.config,
    )  # fmt: skip
    return graph


def check_files(folder: Path, lock: Lock) -> None:
    """Refuse files that are not those of the lock; tell it of those that nothing is made of.

    Raises:
        PeftcError: E303 for a missing or changed file, E321 for a changed spec.
    """
    if lock.older:
        warn(
            Diagnostic(
                "W111",
                f"{folder} is of an older format, {lock.format_version}",
                notes=(
                    "its lock does not say what spec.yaml was, nor the options of the pieces, "
                    "nor the buffers of the base: whether these were changed is not known",
                ),
                help=('write it anew: peftc.save(peftc.load(folder), "other")',),
            )
        )
    read = {n: h for n, h in lock.sha256.items() if n in READ}
    check_intact(folder, {n: h for n, h in read.items() if n != SPEC}, LOCK)
    if SPEC in read and (not (folder / SPEC).is_file() or sha256(folder / SPEC) != read[SPEC]):
        gone = not (folder / SPEC).is_file()
        raise error(
            "E321",
            f"{folder / SPEC} {'is missing' if gone else 'was changed'} since this was saved",
            notes=("the tensors were trained with the spec as it was",),
            help=(
                "put it back as it was",
                "to start anew from a changed spec: copy it elsewhere, peftc apply SPEC MODEL",
            ),
        )
    shown = {n: folder / n for n in lock.sha256 if n not in READ}
    changed = [n for n, p in shown.items() if not p.is_file() or sha256(p) != lock.sha256[n]]
    if changed:
        warn(
            Diagnostic(
                "W112",
                f"{folder}: {', '.join(changed)} differ from what was saved",
                notes=("nothing is computed from them, but they may not show this graph",),
            )
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        PeftcError: E303 where it is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as cause:
        raise error("E303", f"{path} cannot be read: {cause}") from cause


def check_tensors(tensors: Mapping[str, Tensor], lock: Lock, folder: Path) -> None:
    """Refuse stored tensors that are not those of the lock.

    Raises:
        PeftcError: E302 for missing or unexpected names, E322 for another dtype or shape, or for
            numbers that were finite when they were saved.
    """
    check_names(tensors, lock.tensors, folder)
    bad = []
    for name, tensor in tensors.items():
        found, wanted = tensor_facts(tensor), lock.tensors[name]
        if found.dtype != wanted.dtype:
            bad.append(f"{name} is {found.dtype}, {LOCK} says {wanted.dtype}")
        elif found.shape != wanted.shape:
            bad.append(f"{name} is {found.shape}, {LOCK} says {wanted.shape}")
        elif wanted.finite and not found.finite:
            bad.append(f"{name} has numbers that are infinite or not a number")
    if bad:
        raise error(
            "E322",
            f"{folder / TENSORS} is not what was saved: "
            f"{len(bad)} of {len(tensors)} tensors differ",
            notes=tuple(bad[:3]),
            help=("copy the whole folder again", "or train again from the artifact it came from"),
        )


def check_names(given: Collection[str], own: Collection[str], folder: Path) -> None:
    """Refuse tensors that have other names.

    Raises:
        PeftcError: E302.
    """
    missing = sorted(set(own) - set(given))
    unexpected = sorted(set(given) - set(own))
    if missing or unexpected:
        raise error(
            "E302",
            f"{TENSORS} does not belong to this graph: {len(missing)} missing, "
            f"{len(unexpected)} unexpected tensors",
            notes=tuple(
                f"{what}: {', '.join(names[:3])}"
                for what, names in (("missing", missing), ("unexpected", unexpected))
                if names
            ),
            help=(f"it was made by another spec than {folder / SPEC}",),
        )


def fill(graph: Program, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy stored tensors into the graph's parameters, every one of both sides used.

    Raises:
        PeftcError: E302 for missing or unexpected names, E104 for another shape.
    """
    own = trained(graph)
    check_names(tensors, own, folder)
    for name, parameter in own.items():
        value = tensors[name]
        if value.shape != parameter.shape:
            inserted = is_inserted(name)
            spec: Spec = graph.meta[APPLIED].spec
            raise error(
                "E104",
                f"checkpoint tensor {name} is {list(value.shape)}, "
                f"the {'spec makes' if inserted else 'model has'} {list(parameter.shape)}",
                help=(
                    set_back(name, value, parameter, spec, folder / SPEC)
                    if inserted
                    else "give a model with as many labels as the one that this was trained on",
                ),
            )
        parameter.data.copy_(value)


def set_back(name: str, stored: Tensor, made: Tensor, spec: Spec, file: Path) -> str:
    """What to change in a spec for a stored tensor to fit: the one size that makes its shape."""
    piece = piece_name(name)
    ident = piece.insertion if piece else ""
    options = next((i.delta.options for i in spec.insert if i.id == ident), None)
    apart = {(a, b) for a, b in zip(stored.shape, made.shape, strict=False) if a != b}
    if options is not None and len(apart) == 1:
        ((wanted, found),) = apart
        keys = [k for k, v in options.model_dump().items() if v == found and type(v) is int]
        if len(keys) == 1:
            return f"set `{keys[0]}` of `{ident}` in {file} back to {wanted}"
    return f"{file} was changed since: set `{ident}` back to what it was"


def check_graph(graph: Program, lock: Lock, folder: Path) -> None:
    """Refuse a graph that is not the one of the lock.

    Raises:
        PeftcError: E301, with the versions that differ.
    """
    if lock.graph_sha256 == fingerprint(graph, pieces=not lock.older):
        return
    # Locks once had the hash of the listing, which names the device that it was made on.
    if lock.older and lock.graph_sha256 == hashlib.sha256(listing(graph).encode()).hexdigest():
        return
    made = lock.versions
    here = {p: installed(p) for p in made}
    other = {p: v for p, v in here.items() if v != made[p]}
    raise error(
        "E301",
        f"{folder}: the base model gives another graph than the one this was trained on",
        notes=(f"made with {versions(made)}; here: {versions(other) or 'the same'}",),
        help=(f"install the versions that {LOCK} names",) if other else (),
    )


def installed(package: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions(found: Mapping[str, str]) -> str:
    """Versions by package, as text."""
    return ", ".join(f"{p} {v}" for p, v in found.items())
