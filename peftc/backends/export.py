"""Program -> a folder that a runtime takes: fold, write, and say what is in it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from peftc.backends.base import Backend, Exported, backend
from peftc.backends.facts import Facts
from peftc.backends.triton import CONFIG, VERSION, check_layout, config
from peftc.backends.weights import base_files, fill, in_place, linkable
from peftc.capture.program import Input, Output, Program
from peftc.capture.stored import StoredWeights, stored_of
from peftc.ground.diagnostics import error
from peftc.ground.files import FORMAT, check_intact, sha256
from peftc.ground.machine import check_disk
from peftc.ground.output.guard import check_free
from peftc.ground.output.recover import recovered
from peftc.ground.output.staging import staged
from peftc.ground.records import read_record
from peftc.rewrite.applied import APPLIED, Applied
from peftc.rewrite.apply import select_task
from peftc.rewrite.merging import Outcome, apart, insertions, outcomes, wanted
from peftc.rewrite.pipeline import fold as folded
from peftc.runtime import fingerprint

FACTS = "peftc.export.json"
LAYOUTS = ("folder", "triton")
FOLDS = ("auto", "unmerged", "none")


def export(
    graph: Program,
    kind: str,
    out: str | Path,
    *,
    fold: str = "auto",
    task: str | None = None,
    opset: int | None = None,
    weights: str | None = None,
    layout: str = "folder",
    name: str = "model",
    force: bool = False,
) -> Exported:
    """Write `graph` as "onnx", "torchscript" or "aoti", or as a checkpoint, "hf" or "peft".

    With `task` the file is for that task alone, without the pieces and heads of the others.

    The graph itself is unchanged. `weights="link"`, the default of "onnx" and "aoti" where the
    base lies in safetensors files on the same disk, leaves frozen weights in those files, which
    the folder gets as hard links; "copy" writes them once more. With `fold="auto"` dropouts and
    reparameterisations go and mergeable pieces are merged, or those that the spec's `export.fold`
    names: only weights that change are written then. With "unmerged" every piece stays apart, with
    constants folded into its tensors; with "none" the pieces stay what they are. With
    `layout="triton"` `out` is a Triton model repository, and the model in it is called `name`.

    Raises:
        PeftcError: E106 for an unknown task, E306 where `out` exists, E401 for an unknown kind,
            E403 for missing packages, E408 where PEFT has no form of the graph, E409 for an unknown
            option, E410 where weights cannot be linked, E411 where a checkpoint of "hf" cannot hold
            it, E501 where the disk has too little room.
    """
    target = backend(kind)
    target.check_tools()
    if layout not in LAYOUTS:
        raise error("E409", f"layout: {layout}", help=(f"layout is {' or '.join(LAYOUTS)}",))
    served = layout == "triton"
    if served:
        check_layout(kind, name)
    top = Path(out) / name if served else Path(out)  # a repository may hold other models
    applied = graph.meta.get(APPLIED)
    inputs = (applied and applied.reference,)
    check_free(top, force=force, inputs=inputs)
    if fold not in FOLDS:
        raise error("E405", f"`{fold}` is no way to fold", help=(f"one of: {', '.join(FOLDS)}",))
    if target.merges and fold != "auto":
        raise error(
            "E405",
            f"fold: {fold}: {kind} has every piece merged",
            help=("leave --fold out", "onnx and torchscript keep pieces apart"),
        )
    chosen = graph if task is None else select_task(graph, task)
    merge = merged(graph, target, fold)
    program = folded_for(chosen, target, fold, merge, deferred=target.streams)
    became = outcomes(insertions(chosen), insertions(program))
    target.check(graph, program)
    stored = files_to_link(graph, target, weights, top)
    # A merged checkpoint is the whole base: also its shards, and weights the graph does not use.
    source = stored or (base_files(graph) if target.merges else stored_of(graph))
    reads = target.streams or target.links
    places = in_place(program, graph, source) if source and reads else {}
    if not target.streams:
        fill(program)
    needed = written(program, places if stored is not None else {})
    check_disk(top, needed, f"exporting to {kind}")
    unmerged = apart(applied.spec, became) if applied is not None and merge else []
    notes = (*target.notes(program), *unmerged)
    with staged(top, force=force, inputs=inputs) as partial:
        folder = partial / VERSION if served else partial
        folder.mkdir(exist_ok=True)
        options = {
            "opset": opset, "link": stored is not None, "places": places, "stored": source,
            "applied": applied,
        }  # fmt: skip
        file = target.write(program, folder, options)
        for own in target.ships:
            shutil.copyfile(own, folder / own.name)
        known = {p.name: h for p, h in stored.sha256.items()} if stored else {}
        facts = {
            "format_version": FORMAT,
            "kind": kind,
            "file": file,
            "opset": opset,
            "fold": fold,
            "merge": merge,
            "merged": [o.id for o in became if o.merged],
            "apart": {
                o.id: {"sites": o.left, "of": o.sites, "why": why_apart(o, merge)}
                for o in became
                if o.left
            },
            "device": next(program.parameters()).device.type,
            **({"task": task} if task is not None else {}),
            "dtype": str(next(program.parameters()).dtype).removeprefix("torch."),
            "weights": "link" if stored is not None else "copy",
            "session": target.session_options(linked=stored is not None),
            "inputs": [described(i) for i in program.signature.inputs],
            "outputs": [described(o) for o in program.signature.outputs],
            "longest": dict(program.signature.longest),  # tokens that have a position, by axis
            "notes": [n.to_json() for n in notes],
            "peft": [n for n, _ in program.peft_parameters()],
            "files": {p.name: file_facts(p, known) for p in sorted(folder.iterdir())},
            "versions": {p: importlib.metadata.version(p) for p in ("peftc", "torch")},
        }
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if served:
            dtypes = [v.meta["val"].dtype for v in program.graph.output_node().args[0]]  # type: ignore[union-attr]
            text = config(kind, name, file, program.signature, dtypes)
            (partial / CONFIG).write_text(text, encoding="utf-8")
    folder, files = top / VERSION if served else top, (*facts["files"], FACTS)
    return Exported(folder, kind, file, files, facts, notes)


def written(program: Program, linked: Collection[str]) -> int:
    """The bytes of the weights that are about to be written."""
    return sum(p.nbytes for n, p in program.named_parameters() if n not in linked)


def file_facts(path: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """What a file is recognised by: its size, a fingerprint, its SHA-256."""
    return {
        "bytes": path.stat().st_size,
        "fingerprint": fingerprint(path),
        "sha256": known.get(path.name) or sha256(path),
    }


def files_to_link(
    graph: Program, target: Backend, weights: str | None, out: Path
) -> StoredWeights | None:
    """The base's files, where the export is to point into them; None for weights of its own."""
    if weights not in (None, "link", "copy"):
        raise error("E409", f"weights: {weights}", help=("weights is link or copy",))
    if weights == "copy" or not target.links:
        if weights == "link":
            raise error(
                "E409",
                f"{target.kind} keeps its weights in its own file",
                help=("only onnx and aoti can link them", "leave --weights out"),
            )
        return None
    stored = base_files(graph)
    if weights == "link" and stored is None:
        raise error(
            "E410",
            "there is no file to link: the base is in memory alone, or its file was changed",
            help=("--weights copy writes the weights",),
        )
    if stored is None or (weights is None and not linkable(stored, out)):
        return None
    return stored


def folded_for(
    graph: Program,
    target: Backend,
    fold: str,
    merge: bool | Collection[str],
    *,
    deferred: bool = False,
) -> Program:
    """The graph that a format writes: a folded copy of `graph`."""
    constants = fold != "none" and target.merges is not False
    return folded(graph, merge=merge, constants=constants, deferred=deferred)[0]


def refolded(graph: Program, exported: Exported, *, deferred: bool) -> Program:
    """The copy of `graph` that a file of it is of, folded as its facts say."""
    target, fold = backend(exported.kind), exported.facts["fold"]
    merge = exported.facts.get("merge", merged(graph, target, fold))  # older files do not say it
    return folded_for(graph, target, fold, merge, deferred=deferred)


def merged(graph: Program, target: Backend, fold: str) -> bool | list[str]:
    """What is to be merged: what the format or the caller says, or for "auto" the spec."""
    if target.merges is not None or fold != "auto":
        return bool(target.merges)
    applied: Applied | None = graph.meta.get(APPLIED)
    return wanted(applied.spec if applied is not None else None)


def why_apart(outcome: Outcome, merge: bool | Collection[str]) -> str:
    """Why something of an insertion is left as it is."""
    if isinstance(merge, bool):
        return outcome.why if merge else "nothing is to be merged"
    return outcome.why if outcome.id in merge else "the spec does not name it in `export.fold`"


def described(end: Input | Output) -> dict[str, Any]:
    """An input or output as data."""
    result: dict[str, Any] = {"name": end.name, "dims": list(end.dims)}
    if isinstance(end, Input):
        result["dtype"] = str(end.dtype).removeprefix("torch.")
        result["default"] = end.default
    return result


def read_export(folder: str | Path) -> Exported:
    """Open an export, its files checked against their hashes.

    Raises:
        PeftcError: E308 where the folder is no export, E303 for a damaged or missing file.
    """
    folder = Path(folder)
    if not folder.exists():
        recovered(folder)
    if not (folder / FACTS).is_file():  # a Triton repository, or a model of one, with one version
        inside = [*folder.glob(f"{VERSION}/{FACTS}"), *folder.glob(f"*/{VERSION}/{FACTS}")]
        folder = inside[0].parent if len(inside) == 1 else folder
    read = read_record(folder / FACTS, Facts, "export", "peftc export DIR --to onnx")
    facts = read.model_dump()
    check_intact(folder, {n: f["sha256"] for n, f in facts["files"].items()}, FACTS)
    return Exported(folder, facts["kind"], facts["file"], tuple(facts["files"]), facts)
