"""`peftc export`: files for deployment, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftc.cli.console import emit, progress, say
from peftc.cli.options import Force, Json, Only, Without
from peftc.cli.verbs.verify import print_report

ORDER = 7


def export(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    to: Annotated[str, typer.Option("--to", help="onnx or torchscript.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to; ARTIFACT/FORMAT if left out.")
    ] = None,
    fold: Annotated[str, typer.Option(help="auto (merge what can be), unmerged, none.")] = "auto",
    task: Annotated[str | None, typer.Option(help="Of several tasks, only this one.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX only: 24 or 20.")] = None,
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    without: Without = None,
    insertion: Only = None,
    tol: Annotated[float, typer.Option(help="The largest difference that passes.")] = 1e-4,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an artifact as ONNX or TorchScript, and compare the file with the graph."""
    from peftc.backends.base import backend
    from peftc.files import check_free

    backend(to).check_installed()
    out = out or artifact / (f"{to}-{task}" if task else to)
    check_free(out, force=force)
    import peftc
    from peftc.cli.verbs.verify import load_quietly

    with progress(f"loading {artifact}"):
        graph = load_quietly(artifact, model, without=without, insertion=insertion)
    with progress(f"exporting to {to}"):
        exported = peftc.export(graph, to, out, fold=fold, task=task, opset=opset, force=force)
    with progress("verifying"):
        report = peftc.verify(graph, out, tolerance=tol)
    if json:
        emit(
            {
                "ok": report.ok,
                "out": str(out),
                "export": dict(exported.facts),
                "verify": report.to_json(),
            }
        )
    else:
        say(f"wrote {out}/")
        for name in exported.files:
            say(f"   {name:<20}{(out / name).stat().st_size:>14,} bytes")
        print_report(report)
    if not report.ok:
        raise typer.Exit(6)
