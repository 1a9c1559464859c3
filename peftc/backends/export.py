"""Program -> a folder that a runtime takes: fold, write, and say what is in it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from peftc.api import APPLIED, select_task
from peftc.backends.base import Exported, backend
from peftc.capture.program import Input, Output, Program
from peftc.diagnostics import error
from peftc.files import FORMAT, check_free, check_intact, read_facts, sha256, staged
from peftc.pipeline import fold as folded

FACTS = "peftc.export.json"
FOLDS = ("auto", "unmerged", "none")


def export(
    graph: Program,
    kind: str,
    out: str | Path,
    *,
    fold: str = "auto",
    task: str | None = None,
    opset: int | None = None,
    force: bool = False,
) -> Exported:
    """Write `graph` for deployment: "onnx" or "torchscript".

    With `task` the file is for that task alone, without the pieces and heads of the others.

    The graph itself is unchanged. With `fold="auto"` dropouts and reparameterisations go and
    mergeable pieces are merged, or those that the spec's `export.fold` names; with "unmerged"
    every piece stays apart, with constants folded into its tensors; with "none" the pieces stay
    what they are.

    Raises:
        PeftcError: E106 for an unknown task, E306 where `out` exists, E401 for an unknown kind,
            E403 for missing packages.
    """
    target = backend(kind)
    target.check_installed()
    out = Path(out)
    check_free(out, force=force)
    if fold not in FOLDS:
        raise error("E405", f"fold: {fold}", help=(f"fold is one of {', '.join(FOLDS)}",))
    selected = graph if task is None else select_task(graph, task)
    program, _ = folded(selected, merge=merged(graph, fold), constants=fold != "none")
    with staged(out, force=force) as partial:
        file = target.write(program, partial, {"opset": opset})
        names = sorted(p.name for p in partial.iterdir())
        facts = {
            "format_version": FORMAT,
            "kind": kind,
            "file": file,
            "opset": opset,
            **({"task": task} if task is not None else {}),
            "inputs": [described(i) for i in program.signature.inputs],
            "outputs": [described(o) for o in program.signature.outputs],
            "peft": [n for n, _ in program.peft_parameters()],
            "sha256": {n: sha256(partial / n) for n in names},
            "versions": {p: importlib.metadata.version(p) for p in ("peftc", "torch")},
        }
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return Exported(out, kind, file, tuple([*names, FACTS]), facts)


def merged(graph: Program, fold: str) -> bool | list[str]:
    """What is to be merged: what the spec's `export.fold` says, for fold "auto"."""
    if fold != "auto":
        return False
    applied = graph.meta.get(APPLIED)
    wanted = applied.spec.export.fold if applied and applied.spec.export else "auto"
    return wanted if isinstance(wanted, list) else wanted == "auto"


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
    facts = read_facts(folder / FACTS, "export", "peftc export DIR --to onnx")
    check_intact(folder, facts["sha256"], FACTS)
    return Exported(folder, facts["kind"], facts["file"], tuple(facts["sha256"]), facts)
