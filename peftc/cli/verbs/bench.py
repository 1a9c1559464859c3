"""`peftc bench`: what an exported file costs beyond its frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say, table
from peftc.cli.options import Json, Trust

ORDER = 8.5


def bench(
    exported: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that export wrote.")],
    artifact: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The artifact; the folder above if left out."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="The frozen base, already exported in the same format."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    trust: Trust = False,
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,16",
    length: Annotated[str, typer.Option(help="Lengths, with commas.")] = "64",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each, alternating.")] = 60,
    json: Json = False,
) -> None:
    """Time an exported file against its frozen base in the same format, calls interleaved."""
    from peftc.backends.export import read_export

    opened = read_export(exported)  # a wrong folder is refused before anything is loaded
    batches, lengths = numbers("--batch", batch), numbers("--length", length)
    from peftc.backends.bench import bench as measure

    frozen: Any = base
    if base is None:
        with progress("loading the base"):
            frozen = exported_graph(
                opened, artifact or exported.resolve().parent, model, trust=trust
            )
    with progress("timing"):
        result = measure(
            frozen, exported, batches=batches, lengths=lengths, threads=threads, rounds=rounds
        )
    if json:
        emit(result.to_json())
        return
    print_bench(result)


def exported_graph(opened: Any, artifact: Path, model: str | None, *, trust: bool) -> Any:
    """The artifact's graph; linked weights stay on the disk."""
    from peftc.artifact.folder import read_lock
    from peftc.backends import backend
    from peftc.cli.verbs.verify import load_quietly
    from peftc.ground.diagnostics import PeftcError, error

    try:
        read_lock(artifact)
    except PeftcError as cause:
        raise error(
            "E412",
            f"{artifact} is no artifact, so the frozen base is unknown",
            help=("name it with --artifact DIR", "or --base DIR, an export of the base"),
        ) from cause
    weights = not backend(opened.kind).streams
    return load_quietly(artifact, model, opened.facts["device"], weights=weights, trust=trust)


def numbers(option: str, text: str) -> list[int]:
    """Positive numbers with commas between them.

    Raises:
        PeftcError: E008 for anything else.
    """
    from peftc.ground.diagnostics import error

    parts = [t.strip() for t in text.split(",")]
    if not all(t.isdecimal() and int(t) > 0 for t in parts):
        raise error("E008", f"{option} {text}", help=(f"numbers with commas: {option} 1,16",))
    return [int(t) for t in parts]


def print_bench(result: Any) -> None:
    """Latency and memory as two tables."""
    table(
        f"bench  {result.kind}, {result.threads} threads, {result.rounds} calls each, alternating",
        [("INPUT", ""), ("BASE", "right"), ("THIS", "right"), ("RATIO", "right"),
         ("MIDDLE HALF", "right"), ("SHORTEST", "right"), ("CPU TIME", "right")],
        [
            (
                f"batch {t.batch}, length {t.length}",
                f"{t.base_ms:.2f} ms",
                f"{t.ms:.2f} ms",
                f"{t.ratio:.3f}",
                f"{t.low:.3f} - {t.high:.3f}",
                f"{t.least:.3f}",
                f"{t.cpu:.3f}",
            )
            for t in result.timings
        ],
    )  # fmt: skip
    memory = result.memory
    say()
    rows = [("files", memory.base_files, memory.files)]
    rows += [
        (f"{k} memory", memory.base[k], memory.own[k])
        for k in ("private", "peak", "device")
        if memory.base.get(k)
    ]
    table(
        "",
        [("MEMORY", ""), ("BASE", "right"), ("THIS", "right"), ("RATIO", "right")],
        [(n, megabytes(a), megabytes(b), f"{b / a:.3f}" if a > 0 else "") for n, a, b in rows],
    )


def megabytes(count: int) -> str:
    """A number of bytes as text."""
    return f"{count / 1e6:,.1f} MB"
