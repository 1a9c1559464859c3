"""Artifacts: a folder with the resolved spec, the trained tensors and a lock, and its loading."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftc.api import APPLIED, Applied, Origin, program_of, reference_of, rewritten, trained
from peftc.base_model import check_base, give, load_base, model_facts, stored_base
from peftc.capture import Program
from peftc.capture.listing import fingerprint, listing
from peftc.capture.piece_name import is_inserted, piece_name
from peftc.capture.program import STORED
from peftc.capture.stored import fill_buffers
from peftc.card import card
from peftc.diagnostics import error
from peftc.files import FORMAT, check_intact, read_facts, sha256, staged
from peftc.picture import page
from peftc.spec import Spec, load_spec

TENSORS, LOCK, SPEC = "peft.safetensors", "peftc.lock.json", "spec.yaml"
GRAPH, PICTURE = "graph.txt", "graph.html"
UNUSED = "unused.safetensors"  # what an imported checkpoint holds beside, for its export
PACKAGES = ("peftc", "torch", "transformers", "safetensors")


def save(graph: Program, folder: str | Path, *, force: bool = False) -> Path:
    """Write `graph` as an artifact: only its trained tensors, never the base.

    Raises:
        PeftcError: E306 where the folder exists, E307 where the graph does not come from `apply`.
    """
    folder = Path(folder)
    with staged(folder, force=force) as partial:
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
    stored = [TENSORS]
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    if applied.origin is not None and applied.origin.unused:
        save_file(applied.origin.unused, folder / UNUSED, metadata={"format": "pt"})
        stored.append(UNUSED)
    text = listing(graph)
    lock = {
        "format_version": FORMAT,
        "model": model_facts(graph, applied),
        "seed": applied.seed,
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "tensors": {n: {"dtype": str(t.dtype), "shape": list(t.shape)} for n, t in tensors.items()},
        "sha256": {name: sha256(folder / name) for name in stored},
        "graph_sha256": fingerprint(graph),
        "plan": applied.plan,
    }
    if applied.origin is not None:
        lock["origin"] = {k: v for k, v in vars(applied.origin).items() if k != "unused"}
    (folder / LOCK).write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")
    (folder / SPEC).write_text(applied.spec.to_yaml(), encoding="utf-8")
    (folder / GRAPH).write_text(text, encoding="utf-8")
    name = Path(lock["model"]["reference"] or lock["model"]["class"]).name
    (folder / PICTURE).write_text(page(applied.made, name), encoding="utf-8")
    (folder / "README.md").write_text(card(lock, applied.spec), encoding="utf-8")


def load(folder: str | Path, model: Any = None, *, weights: bool = True) -> Program:
    """Rebuild the graph of an artifact, bit for bit, on its base model.

    `model` is the base where it is not to be loaded from the place the lock names. Without
    `weights` a base that lies in safetensors files is never loaded: frozen weights are fake
    tensors, their files are compared with the lock by reading them once, and the graph is for
    `export`. A base that holds other weights than its files (a fresh head) is loaded after all.

    Raises:
        PeftcError: E301 for another base, E302 for tensors of another graph, E303 for a damaged
            file, E308 where the folder is no artifact.
    """
    folder = Path(folder)
    lock = read_lock(folder)
    check_intact(folder, lock["sha256"], LOCK)
    tensors = read_tensors(folder / TENSORS)
    stored = None if weights else stored_base(lock, folder, model)
    if model is None or isinstance(model, str | Path):
        model = load_base(lock, folder, model, fake=stored is not None)
    if stored is not None:
        fill_buffers(model, stored)
    program = program_of(model, weights=True, static_length=lock["model"]["static_length"])
    if stored is not None:
        program.meta[STORED] = stored
        give(program, tensors)
    spec, reference = load_spec(folder / SPEC), reference_of(model)
    graph = rewritten(spec, program, seed=lock["seed"], reference=reference)
    check_base(graph, lock, folder)
    fill(graph, tensors, folder)
    applied: Applied = graph.meta[APPLIED]
    applied.reference = lock["model"]["reference"] or reference
    applied.random_weights = lock["model"]["random_weights"]
    if "origin" in lock:
        unused = read_tensors(folder / UNUSED) if UNUSED in lock["sha256"] else {}
        applied.origin = Origin(**lock["origin"], unused=unused)
    check_graph(graph, lock, folder)
    return graph


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of an artifact folder.

    Raises:
        PeftcError: E308 where the folder is no artifact, E303 where its lock is damaged.
    """
    return read_facts(folder / LOCK, "peftc artifact", "peftc apply SPEC MODEL -o DIR")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as cause:
        raise error("E303", f"{path} cannot be read: {cause}") from cause


def fill(graph: Program, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy stored tensors into the graph's parameters, every one of both sides used.

    Raises:
        PeftcError: E302 for missing or unexpected names, E104 for another shape.
    """
    own = trained(graph)
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
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


def check_graph(graph: Program, lock: Mapping[str, Any], folder: Path) -> None:
    """Refuse a graph that is not the one of the lock.

    Raises:
        PeftcError: E301, with the versions that differ.
    """
    if lock["graph_sha256"] == fingerprint(graph):
        return
    # Locks once had the hash of the listing, which names the device that it was made on.
    if lock["graph_sha256"] == hashlib.sha256(listing(graph).encode()).hexdigest():
        return
    made = lock["versions"]
    here = {p: importlib.metadata.version(p) for p in made}
    other = {p: v for p, v in here.items() if v != made[p]}
    raise error(
        "E301",
        f"{folder}: the base model gives another graph than the one this was trained on",
        notes=(f"made with {versions(made)}; here: {versions(other) or 'the same'}",),
        help=(f"install the versions that {LOCK} names",) if other else (),
    )


def versions(found: Mapping[str, str]) -> str:
    """Versions by package, as text."""
    return ", ".join(f"{p} {v}" for p, v in found.items())
