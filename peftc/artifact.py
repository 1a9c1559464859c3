"""Artifacts: a folder with the resolved spec, the trained tensors and a lock, and its loading."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftc.api import APPLIED, Applied, Origin, program_of, reference_of, rewritten, trainable
from peftc.capture import Program
from peftc.capture.fake import has_numbers
from peftc.capture.listing import listing
from peftc.capture.load import load_model
from peftc.capture.program import PEFT_PREFIX, STORED
from peftc.capture.stored import StoredWeights, fill_buffers, stored_of
from peftc.capture.weight_files import stored_weights
from peftc.card import card
from peftc.diagnostics import error
from peftc.files import FORMAT, check_intact, read_facts, sha256, staged
from peftc.passes.base import set_parameter
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
        "graph_sha256": hashlib.sha256(text.encode()).hexdigest(),
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
        model = base_model(lock, folder, model, fake=stored is not None)
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
    if hashlib.sha256(listing(graph).encode()).hexdigest() != lock["graph_sha256"]:
        here = importlib.metadata.version("transformers")
        raise error(
            "E301",
            f"{folder}: the base model gives another graph than the one this was trained on",
            notes=(f"made with {versions(lock)}; here transformers is {here}",),
            help=("install the versions that peftc.lock.json names",),
        )
    return graph


def trained(graph: Program) -> dict[str, nn.Parameter]:
    """What an artifact stores: every inserted parameter, and the base's unfrozen ones."""
    return dict(graph.peft_parameters()) | trainable(graph)


def model_facts(graph: Program, applied: Applied) -> dict[str, Any]:
    """What identifies the base: where it is, its class and config, a hash of each weight."""
    config = graph.signature.config
    reference = applied.reference
    if reference is not None and Path(reference).is_dir():
        reference = str(Path(reference).resolve())
    return {
        "reference": reference,
        "class": graph.signature.model_class,
        "random_weights": applied.random_weights,
        "static_length": graph.signature.static_length,
        "commit": getattr(config, "_commit_hash", None),
        "dtype": str(next(graph.parameters()).dtype).removeprefix("torch."),
        "config": json.loads(config.to_json_string(use_diff=False)),
        "attn_implementation": getattr(config, "_attn_implementation", None),
        "weights": weight_hashes(graph),
    }


def weight_hashes(graph: Program) -> dict[str, str]:
    """SHA-256 of each frozen weight's bytes, by name; trained tensors are not of the base."""
    own = trained(graph)
    return {n: digest(p, n, graph) for n, p in graph.named_parameters() if n not in own}


def digest(tensor: Tensor, name: str, graph: Program) -> str:
    """SHA-256 of a weight's dtype, shape and bytes; of a fake one, that of the file's tensor."""
    stored = stored_of(graph)
    if stored is not None and not has_numbers(tensor):
        return stored.digest(name)
    data = tensor.detach().cpu().contiguous()
    result = hashlib.sha256(f"{data.dtype}{list(data.shape)}".encode())
    result.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of an artifact folder."""
    return read_facts(folder / LOCK, "peftc artifact", "peftc apply SPEC MODEL -o DIR")


def base_model(
    lock: Mapping[str, Any], folder: Path, place: str | Path | None = None, *, fake: bool = False
) -> Any:
    """Load the base that the lock names, from `place` where it moved, as the class it was.

    With `fake` its parameters are fake tensors, and no weights are read.

    Raises:
        PeftcError: E309 where the lock names no place the base can be loaded from.
    """
    facts = lock["model"]
    if facts["reference"] is None and place is None:
        raise error(
            "E309",
            f"{folder}: the base model was made in Python, so its place is unknown",
            help=("give it: peftc.load(folder, model)", "or --model on the command line"),
        )
    return load_model(
        place or facts["reference"],
        architecture=facts["class"],
        config=facts["config"],
        dtype=facts["dtype"],
        attn=facts["attn_implementation"],
        revision=facts["commit"] if place is None else None,
        random_weights=facts["random_weights"],
        fake=fake,
    )


def stored_base(lock: Mapping[str, Any], folder: Path, model: Any) -> StoredWeights | None:
    """The files that hold every frozen weight of the lock; None where the base has to be loaded.

    Raises:
        PeftcError: E301 where the files are another model's.
    """
    facts = lock["model"]
    source = model if model is not None else facts["reference"]
    if source is None or not isinstance(source, str | Path):
        return None
    stored = stored_weights(source, facts["commit"] if model is None else None)
    wanted: dict[str, str] = facts["weights"]
    absent = stored.match(wanted) if stored is not None else []
    if stored is not None and not absent:
        return stored
    if stored is None:
        return None
    # The files have a tensor of this name and dtype, and it is another one.
    other = [n for n in absent if facts["dtype"] in stored.dtypes_of(n)]
    if other:
        raise another_base(folder, other, wanted, lock)
    return None


def give(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Put an artifact's numbers into base weights that it trained, before they are unfrozen."""
    own = dict(program.named_parameters())
    for name, value in tensors.items():
        if not name.startswith(PEFT_PREFIX) and name in own:
            set_parameter(program, name, value)


def check_base(graph: Program, lock: Mapping[str, Any], folder: Path) -> None:
    """Refuse a base whose frozen weights differ from the lock's."""
    wanted: dict[str, str] = lock["model"]["weights"]
    frozen = {n: p for n, p in graph.named_parameters() if n in wanted}
    absent = [n for n in wanted if n not in frozen]
    differing = [n for n, p in frozen.items() if digest(p, n, graph) != wanted[n]]
    if absent or differing:
        raise another_base(folder, absent + differing, wanted, lock)


def another_base(
    folder: Path, bad: list[str], wanted: Mapping[str, str], lock: Mapping[str, Any]
) -> Exception:
    """E301: the frozen weights are not those that the pieces were trained on."""
    return error(
        "E301",
        f"{folder} belongs to another base model: {len(bad)} of {len(wanted)} weights differ",
        notes=(", ".join(bad[:3]) + (", ..." if len(bad) > 3 else ""),),
        help=(f"the lock names {lock['model']['reference'] or lock['model']['class']}",),
    )


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
            raise error(
                "E104",
                f"checkpoint tensor {name} is {list(value.shape)}, "
                f"the spec makes {list(parameter.shape)}",
                help=(set_back(name, value, parameter, graph.meta[APPLIED].spec, folder / SPEC),),
            )
        parameter.data.copy_(value)


def set_back(name: str, stored: Tensor, made: Tensor, spec: Spec, file: Path) -> str:
    """What to change in a spec for a stored tensor to fit: the one size that makes its shape."""
    ident = name.split(".")[1]
    options = next((i.delta.options for i in spec.insert if i.id == ident), None)
    apart = {(a, b) for a, b in zip(stored.shape, made.shape, strict=False) if a != b}
    if options is not None and len(apart) == 1:
        ((wanted, found),) = apart
        keys = [k for k, v in options.model_dump().items() if v == found and type(v) is int]
        if len(keys) == 1:
            return f"set `{keys[0]}` of `{ident}` in {file} back to {wanted}"
    return f"{file} was changed since: set `{ident}` back to what it was"


def versions(lock: Mapping[str, Any]) -> str:
    """The versions of a lock, as text."""
    return ", ".join(f"{p} {v}" for p, v in lock["versions"].items())
