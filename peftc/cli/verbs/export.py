"""`peftc export`: files for deployment, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftc.cli.console import emit, progress, say
from peftc.cli.options import Force, Json
from peftc.cli.verbs.verify import print_report

ORDER = 7
EXAMPLES = ("peftc export out --to onnx", "peftc export out/runs/001 --to torchscript -o here")


def export(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    to: Annotated[str, typer.Option("--to", help="onnx or torchscript.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to; ARTIFACT/FORMAT if left out.")
    ] = None,
    fold: Annotated[str, typer.Option(help="auto: merge what can be merged; none.")] = "auto",
    opset: Annotated[int | None, typer.Option(help="ONNX only: 24 or 20.")] = None,
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    tol: Annotated[float, typer.Option(help="The largest difference that passes.")] = 1e-4,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an artifact as ONNX or TorchScript, and compare the file with the graph."""
    from peftc.artifact import read_lock
    from peftc.backends.base import backend
    from peftc.estimate import export_bytes
    from peftc.files import check_free
    from peftc.machine import check_disk

    backend(to).check_installed()
    out = out or artifact / to
    check_free(out, force=force)
    needed, parts = export_bytes(read_lock(artifact))
    check_disk(out, needed, "export", parts=parts)
    import peftc
    from peftc.cli.verbs.verify import load_quietly

    with progress(f"loading {artifact}"):
        graph = load_quietly(artifact, model)
    with progress(f"exporting to {to}"):
        exported = peftc.export(graph, to, out, fold=fold, opset=opset, force=force)
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
