"""`peftc verify`: an exported file against its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say, table
from peftc.cli.options import ArtifactArgument, Json, Only, Trust, Without
from peftc.diagnostics import error

ORDER = 8
EXAMPLES = ("peftc verify out out/onnx", "peftc verify out/runs/001 out/runs/001/onnx --tol 1e-5")


def verify(
    artifact: ArtifactArgument,
    exported: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that export wrote.")],
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    without: Without = None,
    insertion: Only = None,
    trust: Trust = False,
    tol: Annotated[float, typer.Option(help="The largest difference that passes.")] = 1e-4,
    json: Json = False,
) -> None:
    """Run an exported file with its own runtime and compare it with the artifact's graph."""
    import peftc
    from peftc.backends import backend
    from peftc.backends.export import read_export

    opened = read_export(exported)
    numbers = not backend(opened.kind).streams
    with progress(f"loading {artifact}"):
        graph = load_quietly(
            artifact, model, opened.facts.get("device", "cpu"),
            without=without, insertion=insertion, weights=numbers, trust=trust,
        )  # fmt: skip
    with progress("verifying"):
        report = peftc.verify(graph, opened, tolerance=tol)
    if json:
        emit(report.to_json())
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(6)


def load_quietly(
    artifact: Path,
    model: str | None,
    device: str = "cpu",
    *,
    without: str | None = None,
    insertion: str | None = None,
    weights: bool = True,
    trust: bool = False,
) -> Any:
    """Load an artifact onto a device, without transformers' own chatter.

    With `without`, the pieces of these layers are left out; with `trust`, code of the base's own
    is run.

    Raises:
        PeftcError: as `peftc.load` and `peftc.without`; E008 for a device that is not there.
    """
    from peftc.artifact import read_lock

    lock = read_lock(artifact)  # a wrong folder is refused before anything is loaded
    from transformers.utils import logging

    import peftc

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = device_of(device)
    base: Any = model
    if trust or place != "cpu":
        from peftc.base_model import load_base

        # Captured where it will run: constants of the graph are made on the model's device.
        base = load_base(lock, artifact, model, trust_remote_code=trust).to(place)
    graph = peftc.load(artifact, base, weights=weights)
    return graph if without is None else peftc.without(graph, without, insertion)


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
    if report.first:
        say(f"the first node that differs: {report.first}")
    say(f"{verdict}  max |diff| {report.difference:.1e}  (tolerance {report.tolerance:.0e})")
