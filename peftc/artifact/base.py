"""The base of an artifact: what its lock says of it, and the model that is found to be it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftc.artifact.buffers import buffer_facts, compared
from peftc.artifact.lock import LOCK, Lock
from peftc.artifact.tokenizer_files import changed_files, tokenizer_hashes
from peftc.capture import Program
from peftc.capture.load import load_model
from peftc.capture.piece_name import is_inserted
from peftc.capture.stored import StoredWeights, digest, stored_of
from peftc.capture.weight_files import stored_weights
from peftc.ground.diagnostics import Diagnostic, PeftcError, error, warn
from peftc.passes.base import set_parameter
from peftc.planning.file import said_by
from peftc.rewrite.applied import Applied, trained


def model_facts(graph: Program, applied: Applied) -> dict[str, Any]:
    """What identifies the base: where it is, its class and config, a hash of each tensor."""
    config = graph.signature.config
    reference = applied.reference
    if reference is not None and Path(reference).is_dir():
        reference = str(Path(reference).resolve())
    commit = getattr(config, "_commit_hash", None)
    return {
        "reference": reference,
        "class": graph.signature.model_class,
        "random_weights": applied.random_weights,
        "static_length": graph.signature.static_length,
        "commit": commit,
        "dtype": str(next(graph.parameters()).dtype).removeprefix("torch."),
        "config": config_data(graph),
        "attn_implementation": getattr(config, "_attn_implementation", None),
        "weights": weight_hashes(graph),
        "buffers": {n: b.model_dump() for n, b in buffer_facts(graph).items()},
        "tokenizer": tokenizer_hashes(reference, config, commit),
    }


def config_data(graph: Program) -> dict[str, Any]:
    """The base's configuration as data, every value of it."""
    return json.loads(graph.signature.config.to_json_string(use_diff=False))


def weight_hashes(graph: Program) -> dict[str, str]:
    """SHA-256 of each frozen weight's bytes, by name; trained tensors are not of the base."""
    own = trained(graph)
    stored = stored_of(graph)
    return {n: digest(p, n, stored) for n, p in graph.named_parameters() if n not in own}


def load_base(
    lock: Lock,
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
        PeftcError: E309 where the lock names no place the base can be loaded from, E323 where
            what lies there has tensors of other shapes.
    """
    facts = lock.model
    if facts.reference is None and place is None:
        raise error(
            "E309",
            f"{folder}: the base model was made in Python, so its place is unknown",
            help=("give it: peftc.load(folder, model)", "or --model on the command line"),
        )
    try:
        return load_model(
            place or facts.reference,
            architecture=facts.class_name,
            config=facts.config,
            dtype=facts.dtype,
            attn=facts.attn_implementation,
            revision=facts.commit if place is None else None,
            trust_remote_code=trust_remote_code,
            random_weights=facts.random_weights,
            fake=fake,
        )
    except PeftcError as refusal:
        if refusal.diagnostics[0].code != "E215":
            raise
        raise error(
            "E323",
            f"{folder}: the model in {place or facts.reference} is not the base of this artifact: "
            "its tensors have other shapes",
            notes=refusal.diagnostics[0].notes,
            help=(
                "a base that was changed in memory (resized embeddings, another head) has to be "
                "saved: model.save_pretrained(FOLDER)",
                "then give that folder with --model, or the model: peftc.load(folder, model)",
            ),
        ) from refusal


def stored_base(lock: Lock, folder: Path, model: Any) -> StoredWeights | None:
    """The files that hold every frozen weight of the lock; None where the base has to be loaded.

    Raises:
        PeftcError: E301 where the files are another model's.
    """
    facts = lock.model
    source = model if model is not None else facts.reference
    if source is None or not isinstance(source, str | Path):
        return None
    stored = stored_weights(source, facts.commit if model is None else None)
    if stored is None:
        return None
    absent = stored.match(facts.weights)
    # The files have a tensor of this name and dtype, and it is another one.
    if other := [n for n in absent if facts.dtype in stored.dtypes_of(n)]:
        raise another_base(folder, other, len(facts.weights), "weights", lock)
    return None if absent else stored


def give(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Put an artifact's numbers into base weights that it trained, before they are unfrozen."""
    own = dict(program.named_parameters())
    for name, value in tensors.items():
        if not is_inserted(name) and name in own:
            set_parameter(program, name, value)


def check_base(graph: Program, lock: Lock, folder: Path) -> None:
    """Refuse a base whose frozen weights or buffers are not the lock's; tell what else is not.

    Raises:
        PeftcError: E301.
    """
    wanted = lock.model.weights
    stored = stored_of(graph)
    frozen = {n: p for n, p in graph.named_parameters() if n in wanted}
    absent = [n for n in wanted if n not in frozen]
    differing = [n for n, p in frozen.items() if digest(p, n, stored) != wanted[n]]
    if absent or differing:
        raise another_base(folder, absent + differing, len(wanted), "weights", lock)
    if lock.model.buffers is None:  # of the older format
        return
    other, near = compared(buffer_facts(graph), lock.model.buffers)
    if other:
        raise another_base(folder, other, len(lock.model.buffers), "buffers", lock)
    if near:
        warn(Diagnostic(
            "W110",
            f"{folder}: {listed(near)} of the base differs in the last digits from what this was "
            "saved on",
            notes=("another kind of processor computes them so; outputs differ as little",),
        ))  # fmt: skip


def check_config(graph: Program, lock: Lock, folder: Path) -> None:
    """Tell what the configuration says otherwise, though the graph is the same.

    Labels' names and the kind of loss are of that sort. A value that is not set, or not known to
    one of two releases of transformers, says nothing.
    """
    mine, theirs = said_by(config_data(graph)), said_by(lock.model.config)
    other = [k for k in sorted(mine.keys() & theirs.keys())
             if mine[k] != theirs[k] and None not in (mine[k], theirs[k])]  # fmt: skip
    if other:
        notes = tuple(f"{k}: {theirs[k]!r} when saved, now {mine[k]!r}"[:200] for k in other[:3])
        warn(Diagnostic(
            "W110",
            f"{folder}: the configuration of the base says {listed(other)} otherwise",
            notes=notes,
            help=("outputs are the same; names of labels or the loss may not be",),
        ))  # fmt: skip


def check_tokenizer(lock: Lock, folder: Path, source: str | Path | None, config: Any) -> None:
    """Tell where the tokenizer's files are not those that the artifact was saved beside."""
    if not lock.model.tokenizer or source is None:
        return
    revision = lock.model.commit if source == lock.model.reference else None
    found = tokenizer_hashes(source, config, revision)
    if not found and not Path(source).is_dir():  # a hub name of which the cache has no tokenizer
        return
    changed = changed_files(found, lock.model.tokenizer)
    if changed:
        warn(Diagnostic(
            "W110",
            f"{folder}: the tokenizer in {source} is not the one that this was saved beside",
            notes=tuple(changed),
            help=("other ids for the same text give other outputs: compare its files",),
        ))  # fmt: skip


def tell_unlike(graph: Program, reference: str | None) -> None:
    """Tell that a base was resized in memory, so that it lies nowhere: it would be lost."""
    files = None
    if reference is not None:
        with contextlib.suppress(PeftcError):  # damaged files are told where they are read
            files = stored_weights(reference, getattr(graph.signature.config, "_commit_hash", None))
    if files is None:
        return
    own = trained(graph)
    unlike = [
        f"{n} is {list(p.shape)}, in the files {list(found[0])}"
        for n, p in graph.named_parameters()
        if n not in own and (found := files.shapes_of(n)) and tuple(p.shape) not in found
    ]
    if unlike:
        warn(Diagnostic(
            "W113",
            f"the base model is not the one that lies in {reference}: {len(unlike)} weights have "
            "other shapes",
            notes=tuple(unlike[:3]),
            help=(
                "save it, or nobody can load this artifact: model.save_pretrained(FOLDER)",
                "then load with it: peftc.load(folder, FOLDER), or --model FOLDER",
            ),
        ))  # fmt: skip


def listed(names: list[str]) -> str:
    """A few names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def another_base(folder: Path, bad: list[str], count: int, what: str, lock: Lock) -> Exception:
    """E301: the frozen tensors are not those that the pieces were trained on."""
    notes = (listed(bad),)
    if what == "buffers":
        notes = (*notes, "the model computes them from its config, or keeps them in its files")
    return error(
        "E301",
        f"{folder} belongs to another base model: {len(bad)} of {count} {what} differ",
        notes=notes,
        help=(f"{LOCK} names {lock.model.reference or lock.model.class_name}",),
    )
