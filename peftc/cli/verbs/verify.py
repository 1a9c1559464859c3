"""`peftc verify`: an exported file against its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say, table
from peftc.cli.options import ArtifactArgument, Base, Json
from peftc.diagnostics import error

ORDER = 8
EXAMPLES = ("peftc verify out out/onnx", "peftc verify out out/onnx --tol 1e-5 --json")


def verify(
    artifact: ArtifactArgument,
    exported: Annotated[
        Path, typer.Argument(metavar="EXPORT", help="The folder that export wrote.")
    ],
    model: Base = None,
    tol: Annotated[float, typer.Option(help="The largest difference that passes.")] = 1e-4,
    json: Json = False,
) -> None:
    """Run an exported file with its own runtime and compare it with the artifact's graph."""
    import peftc

    with progress(f"loading {artifact}"):
        graph = load_quietly(artifact, model)
    with progress("verifying"):
        report = peftc.verify(graph, exported, tolerance=tol)
    if json:
        emit(report.to_json())
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(6)


def load_quietly(artifact: Path, model: str | None, device: str = "cpu") -> Any:
    """Load an artifact onto a device, without transformers' own chatter.

    Raises:
        PeftcError: as `peftc.load`; E008 for a device that is not there.
    """
    from peftc.artifact import read_lock

    lock = read_lock(artifact)  # a wrong folder is refused before torch is imported
    from transformers.utils import logging

    import peftc

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = device_of(device)
    if place == "cpu":
        return peftc.load(artifact, model)
    from peftc.artifact import base_model

    # Captured where it will run: constants of the graph are made on the model's device.
    return peftc.load(artifact, base_model(lock, artifact, model).to(place))


def device_of(wanted: str) -> str:
    """`auto` as the device that it means here.

    Raises:
        PeftcError: E008 where there is no such device.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not (wanted.startswith("cuda") and torch.cuda.is_available()):
        raise error("E008", f"--device {wanted}: not on this machine", help=("cpu, cuda or auto",))
    return wanted


def print_report(report: Any) -> None:
    """The comparison as a table, and the verdict."""
    table(
        f"verify  {report.kind}, in a process of its own",
        [("INPUT", ""), ("OUTPUT", ""), ("MAX |DIFF|", "right"), ("ARGMAX SAME", "right")],
        [
            (
                f"batch {r.batch}, length {r.length}{', padded' if r.padded else ''}",
                r.output,
                f"{r.difference:.1e}",
                f"{100 * r.agreement:.0f} %",
            )
            for r in report.rows
        ],
    )
    verdict = "PASS" if report.ok else "FAIL"
    say(f"{verdict}  max |diff| {report.difference:.1e}  (tolerance {report.tolerance:.0e})")
