"""The base of an artifact: what its lock says of it, and the model that is found to be it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftc.api import Applied, trained
from peftc.capture import Program
from peftc.capture.fake import has_numbers
from peftc.capture.load import load_model
from peftc.capture.piece_name import is_inserted
from peftc.capture.stored import StoredWeights, stored_of
from peftc.capture.weight_files import stored_weights
from peftc.diagnostics import error
from peftc.passes.base import set_parameter


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


def load_base(
    lock: Mapping[str, Any],
    folder: Path,
    place: str | Path | None = None,
    *,
    fake: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """Load the base that the lock names, from `place` where it moved, as the class it was.

    With `fake` its parameters are fake tensors, and no weights are read. An artifact cannot say
    that code of the model's own is to be run: only who loads it can.

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
        trust_remote_code=trust_remote_code,
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
    if stored is None:
        return None
    wanted: dict[str, str] = facts["weights"]
    absent = stored.match(wanted)
    # The files have a tensor of this name and dtype, and it is another one.
    if other := [n for n in absent if facts["dtype"] in stored.dtypes_of(n)]:
        raise another_base(folder, other, wanted, lock)
    return None if absent else stored


def give(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Put an artifact's numbers into base weights that it trained, before they are unfrozen."""
    own = dict(program.named_parameters())
    for name, value in tensors.items():
        if not is_inserted(name) and name in own:
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
