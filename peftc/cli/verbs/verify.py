"""`peftc verify`: an exported file against its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say, table
from peftc.cli.options import Json

ORDER = 8


def verify(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    exported: Annotated[Path, typer.Argument(help="The folder that export wrote.")],
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
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


def load_quietly(artifact: Path, model: str | None) -> Any:
    """Load an artifact without transformers' own chatter."""
    from peftc.artifact import read_lock

    read_lock(artifact)  # a wrong folder is refused before torch is imported
    from transformers.utils import logging

    import peftc

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return peftc.load(artifact, model)


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
