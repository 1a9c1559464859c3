"""`peftc export`: files for deployment, verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import complain, emit, progress, say
from peftc.cli.options import ArtifactArgument, Force, Json, Only, Tolerance, Trust, Without
from peftc.cli.verbs.verify import print_report

ORDER = 7
EXAMPLES = (
    "peftc export out/runs/001 --to onnx",
    "peftc export out --to torchscript -o here",
    "peftc export out --to peft",
)
LARGE = 1_000_000_000  # bytes; more is compared with the graph only on request


def export(
    artifact: ArtifactArgument,
    to: Annotated[str, typer.Option("--to", help="onnx, torchscript, aoti, hf or peft.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="Where to; DIR/FORMAT if left out."),
    ] = None,
    fold: Annotated[str, typer.Option(help="auto (as the spec says), unmerged, none.")] = "auto",
    task: Annotated[str | None, typer.Option(help="Of several tasks, only this one.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="onnx, aoti: link (into the base's files, the default) or copy."),
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify", help="Compare the file with the graph; if left out, up to 1 GB."
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="folder; triton: OUT is a Triton model repository.")
    ] = "folder",
    name: Annotated[
        str | None, typer.Option(help="The model's name in Triton; DIR's if left out.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX only: 24 or 20.")] = None,
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    device: Annotated[str, typer.Option(help="Where it will run: cpu, cuda or auto.")] = "cpu",
    without: Without = None,
    insertion: Only = None,
    trust: Trust = False,
    tol: Tolerance = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an artifact as ONNX, TorchScript, compiled code or a checkpoint, and compare it."""
    from peftc.artifact.folder import read_lock
    from peftc.backends.base import backend
    from peftc.cli.claim import claim

    backend(to).check_tools()
    read_lock(artifact)
    out = out or artifact / (f"{to}-{task}" if task else to)
    name = name or artifact.resolve().name
    top = out / name if layout == "triton" else out  # a repository may hold other models
    claim(top, force=force, inputs=(artifact, model))
    import peftc
    from peftc.cli.verbs.verify import load_quietly

    # What takes weights one at a time needs none of the base in memory.
    numbers = not backend(to).streams
    with progress(f"loading {artifact}"):
        graph = load_quietly(
            artifact, model, device,
            without=without, insertion=insertion, weights=numbers, trust=trust,
        )  # fmt: skip
    with progress(f"exporting to {to}"):
        exported = peftc.export(
            graph, to, out, fold=fold, task=task, opset=opset, weights=weights, layout=layout,
            name=name, force=force,
        )  # fmt: skip
    size = sum(f["bytes"] for f in exported.facts["files"].values())
    report, unchecked = None, ""
    if check or (check is None and size <= LARGE and runs_here(exported)):
        with progress("verifying"):
            report = peftc.verify(graph, exported.folder, tolerance=tol)
    elif check is None:
        with progress("loading the file"):
            unchecked = loaded_only(exported, size)
    if json:
        emit(
            {
                "ok": report is None or report.ok,
                "out": str(exported.folder),
                "export": dict(exported.facts),
                "notes": [n.to_json() for n in exported.notes],
                "verify": report.to_json() if report else None,
            }
        )
    else:
        say(f"wrote {exported.folder}/")
        for file in exported.files:
            path = exported.folder / file
            say(f"   {file:<20}{path.stat().st_size:>16,} bytes{linked(path)}")
        for line in folded(exported.facts):
            say(f"   {line}")
        if exported.notes:
            complain(exported.notes)
        if report:
            print_report(report)
        elif unchecked:
            say(unchecked)
    if report is not None and not report.ok:
        raise typer.Exit(6)


def linked(path: Path) -> str:
    """Of a file that is the base's own: that it is, and where its mode keeps others from it."""
    if path.stat().st_nlink < 2:
        return ""
    mode, usual = (p.stat().st_mode & 0o444 for p in (path, path.with_name("peftc.export.json")))
    hidden = usual & ~mode
    return "  linked" + (
        f", mode {path.stat().st_mode & 0o777:03o} as the base's: a server of another user needs "
        "chmod a+r, or --weights copy" if hidden else ""
    )  # fmt: skip


def folded(facts: Mapping[str, Any]) -> list[str]:
    """What of the insertions was merged into weights, and what was to be and is not, as lines."""
    lines = [f"merged into the weights: {', '.join(facts['merged'])}"] if facts["merged"] else []
    if facts["merge"]:
        lines += [
            f"apart: {name} at {one['sites']} of {one['of']} sites: {one['why']}"
            for name, one in facts["apart"].items()
        ]
    return lines


def runs_here(exported: Any) -> bool:
    """Whether a runtime on this machine computes in the dtype of the weights."""
    if exported.kind != "onnx" or exported.facts["dtype"] != "bfloat16":
        return True
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def loaded_only(exported: Any, size: int) -> str:
    """Let the runtime open the file where it can; what was not checked, as a line."""
    from peftc.backends.process import run

    if not runs_here(exported):
        return "not verified: ONNX Runtime has no bfloat16 on the CPU"
    run(exported, {}, 0, ())
    return f"it loads; not compared with the graph, since it has {size:,} bytes: --verify does that"
