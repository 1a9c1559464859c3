"""`peftc train`: an artifact on rows of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say
from peftc.cli.options import Json
from peftc.diagnostics import error

ORDER = 6


def train(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder, or one of its runs.")],
    data: Annotated[Path, typer.Option(help="Rows to train on, JSON lines.")],
    eval: Annotated[Path | None, typer.Option(help="Rows to evaluate on.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes, without --steps.")] = 3.0,
    batch: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 16,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 1e-3,
    length: Annotated[int, typer.Option(min=2, help="Longest text, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the order and the dropouts.")] = 0,
    name: Annotated[str | None, typer.Option(help="The run's name; a number if left out.")] = None,
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    json: Json = False,
) -> None:
    """Train what the spec trains, and write the result into the artifact's runs/.

    To go on from a run, give its folder: its tensors are the start, the optimiser's state is new.
    """
    out = next_run(artifact, name)
    for path in (data, eval):
        if path is not None and not path.is_file():
            raise error("E081", f"{path}: no such file")
    import peftc
    from peftc.api import APPLIED
    from peftc.cli.bar import training_bar
    from peftc.cli.verbs.verify import load_quietly
    from peftc.train import evaluate, read_rows
    from peftc.train import train as run

    with progress(f"loading {artifact}"):
        graph = load_quietly(artifact, model)
        tokenizer = tokenizer_of(model or graph.meta[APPLIED].reference)
    rows = read_rows(data, graph, tokenizer, length=length)
    held_out = read_rows(eval, graph, tokenizer, length=length) if eval else None
    pad = tokenizer.pad_token_id or 0
    wanted = steps or max(1, round(epochs * len(rows) / batch))
    before = evaluate(graph, held_out, pad=pad) if held_out else None
    with training_bar(wanted, silent=json) as watch:
        result = run(graph, rows, pad=pad, steps=wanted, batch=batch, lr=lr, seed=seed, watch=watch)
    after = evaluate(graph, held_out, pad=pad) if held_out else None
    peftc.save(graph, out)
    if json:
        emit(
            {
                "ok": True,
                "out": str(out),
                "steps": result.steps,
                "interrupted": result.interrupted,
                "losses": result.losses,
                "before": before,
                "after": after,
            }
        )
    else:
        summary(result, before, after, out)
    if result.interrupted:
        raise typer.Exit(130)


def next_run(artifact: Path, name: str | None) -> Path:
    """The folder of a new run, beside the other runs of the same artifact."""
    home = artifact.parent if artifact.parent.name == "runs" else artifact / "runs"
    if name is not None:
        if (home / name).exists():
            raise error("E306", f"{home / name} exists", help=("give another --name",))
        return home / name
    numbers = [int(p.name) for p in home.glob("*") if p.name.isdigit()]
    return home / f"{max(numbers, default=0) + 1:03d}"


def tokenizer_of(reference: str | None) -> Any:
    """The tokenizer that stands beside the base.

    Raises:
        PeftcError: E083 where there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(reference)
    except (OSError, ValueError, TypeError) as cause:
        raise error(
            "E083",
            f"{reference or 'the base model'} has no tokenizer that can be loaded",
            help=("give the folder that has it with --model",),
        ) from cause


def summary(result: Any, before: Any, after: Any, out: Path) -> None:
    """What training did, in a few lines."""
    last = f", loss {result.losses[-1][1]:.4f}" if result.losses else ""
    say(f"{'interrupted after' if result.interrupted else 'trained'} {result.steps} steps{last}")
    if before and after:
        say(
            f"eval: accuracy {before['accuracy']:.3f} -> {after['accuracy']:.3f}, "
            f"loss {before['loss']:.4f} -> {after['loss']:.4f}"
        )
    say(f"saved {out}.  Next:  peftc export {out} --to onnx")
    if result.interrupted:
        say(f"to go on:  peftc train {out} --data ...")
