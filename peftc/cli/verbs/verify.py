"""`peftc verify`: an exported file against its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say, table
from peftc.cli.options import ArtifactArgument, Json, Only, Tolerance, Trust, Without
from peftc.ground.diagnostics import error

ORDER = 8
EXAMPLES = ("peftc verify out out/onnx", "peftc verify out/runs/001 out/runs/001/onnx --deep")
SHOWN = 14  # cases, or weights, that are listed


def verify(
    artifact: ArtifactArgument,
    exported: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that export wrote.")],
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    without: Without = None,
    insertion: Only = None,
    trust: Trust = False,
    tol: Tolerance = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also compare operations and constants; run more ids."),
    ] = False,
    json: Json = False,
) -> None:
    """Compare an exported file with the artifact's graph: its weights, and what it gives."""
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
        report = peftc.verify(graph, opened, tolerance=tol, deep=deep)
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
    from peftc.artifact.folder import read_lock

    lock = read_lock(artifact)  # a wrong folder is refused before anything is loaded
    from transformers.utils import logging

    import peftc

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = device_of(device)
    base: Any = model
    if trust or place != "cpu":
        from peftc.artifact.base import load_base

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
    """The comparison as tables, and the verdict."""
    order = sorted(report.rows, key=lambda r: r.ok)  # what differs first
    table(
        f"verify  {report.kind}, in a process of its own",
        [("INPUT", ""), ("OUTPUT", ""), ("MAX |DIFF|", "right"), ("ALLOWED", "right"),
         ("ARGMAX SAME", "right")],
        [
            (
                f"batch {r.batch}, length {r.length}{padding(r.padded)}",
                r.output,
                f"{r.difference:.1e}",
                f"{r.tolerance:.1e}",
                f"{100 * r.agreement:.0f} %",
            )
            for r in order[:SHOWN]
        ],
    )  # fmt: skip
    if len(order) > SHOWN:
        say(f"and {len(order) - SHOWN:,} more rows, {sum(not r.ok for r in order):,} of all differ")
    if report.weights:
        table(
            f"{len(report.weights):,} of {report.compared:,} weights differ",
            [("WEIGHT", ""), ("DIFFERS IN", ""), ("MAX |DIFF|", "right")],
            [
                (w.name, w.how, "" if w.difference != w.difference else f"{w.difference:.1e}")
                for w in report.weights[:SHOWN]
            ],
        )
        if (more := len(report.weights) - SHOWN) > 0:
            say(f"and {more:,} more weights")
    else:
        say(f"weights: {report.compared:,} compared, none differs")
    if report.lines is not None:
        count = f"{len(report.lines):,} lines" if report.lines else "none"
        say(f"operations and constants: compared with the graph converted anew, {count} differ")
        for line in report.lines[:SHOWN]:
            say(f"   {line}")
    if report.vocabulary:
        more = "" if report.ids >= report.vocabulary else "; --deep runs more"
        say(f"ids: {report.ids:,} of {report.vocabulary:,} were run{more}")
    for name, times in report.far.items():
        if all(r.ok for r in report.rows if r.output == name):
            say(f"{name}: its root mean square is off by {times:.1f} times the noise's; 4 pass")
    if report.first:
        say(f"the first node that differs: {report.first}")
    allowed = "rounding on these inputs" if report.tolerance is None else f"{report.tolerance:.0e}"
    verdict = "PASS" if report.ok else "FAIL"
    say(f"{verdict}  max |diff| {report.difference:.1e}  (allowed: {allowed})")


def padding(side: str) -> str:
    """On which side the texts of a case are padded, as words."""
    words = {"": "", "both": ", padded left or right"}
    return words.get(side, f", padded {side}")
