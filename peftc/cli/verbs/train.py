"""`peftc train`: an artifact on rows of data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, note, progress, say
from peftc.cli.next_step import command, flags
from peftc.cli.options import ArtifactArgument, Json, Trust, assignments
from peftc.ground.diagnostics import error

ORDER = 6
EXAMPLES = (
    "peftc train out --data train.jsonl --eval dev.jsonl",
    "peftc train out --data train.jsonl --set lr=1e-4 --steps 2000",
    "peftc train out --resume",
)


def train(
    artifact: ArtifactArgument,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TASK=]FILE",
            help="Rows to train on, JSON lines; of several tasks one file each.",
        ),
    ] = None,
    eval: Annotated[
        list[str] | None, typer.Option(metavar="[TASK=]FILE", help="Rows to evaluate on.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of several tasks the one trained.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes; 3 by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows in a batch; 16.")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Peak learning rate; 1e-3.")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Longest text, in tokens; 128.")] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between evaluations and checkpoints; a tenth of them."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order and the dropouts; 0.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any of these settings, as lr=1e-4."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    name: Annotated[str | None, typer.Option(help="The run's name; a number if left out.")] = None,
    model: Annotated[str | None, typer.Option(help="The base, if not where it was.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Train what the spec trains, and write the result into the artifact's runs/.

    Ctrl-C finishes the step, saves, and says how to go on; so do `kill` and the end of the
    terminal. A finished run is an artifact too: give
    its folder to train on from its tensors, with a new optimiser. Of several tasks, give each a
    file, --data ner=ner.jsonl --data topic=topic.jsonl: batches are mixed.
    """
    from peftc.train.settings import settled

    options = {
        "steps": steps, "epochs": epochs, "batch": batch, "lr": lr, "length": length,
        "every": every, "seed": seed,
    }  # fmt: skip
    given = {n: v for n, v in options.items() if v is not None} | assignments(set)
    settings = settled(given)
    from peftc.artifact.folder import read_lock
    from peftc.cli.claim import COMMAND
    from peftc.ground.output.claim import claimed
    from peftc.train.run import new_run, unfinished

    if resume:
        if given or data or eval or task or name:
            raise error(
                "E008",
                "--resume goes on with the rows and settings that the run began with",
                help=(command("train", artifact, "--resume"),),
            )
        run, facts = unfinished(artifact)
        COMMAND.enter_context(claimed(run))
        run, facts = unfinished(run)  # another process may have finished it until now
        start = (run / facts["artifact"]).resolve()
        settings = settled({n: v for n, v in facts["settings"].items() if v is not None})
        files = {
            k: [(f.get("task"), Path(f["path"])) for f in v] for k, v in facts["files"].items()
        }
    else:
        if not data:
            raise error(
                "E008", "no rows are given", help=(command("train", artifact, "--data", "FILE"),)
            )
        files = {
            k: [file_of(text, task) for text in texts or []]
            for k, texts in (("train", data), ("eval", eval))
        }
        run, start = None, artifact
    read_lock(start)  # a wrong folder is refused before anything is loaded
    if run is None:
        run = COMMAND.enter_context(new_run(artifact, name))
    facts = job(run, start, files, settings, model, device,
                resume=resume, silent=json, trust=trust)  # fmt: skip
    if json:
        emit(facts)
    else:
        same = flags({"--model": model, "--trust-remote-code": trust})
        summary(facts, same, flags({"--device": device if device != "auto" else None}))
    if facts["interrupted"]:
        raise typer.Exit(130)


def file_of(text: str, task: str | None) -> tuple[str | None, Path]:
    """TASK=FILE, or a FILE of the task that --task names: the task and the path.

    Raises:
        PeftcError: E008 for two tasks, E081 for no file.
    """
    name, equals, rest = text.partition("=")
    if not equals or os.path.isfile(text):
        name, rest = task or "", text
    if task is not None and name != task:
        raise error("E008", f"`{text}` is not of the task `{task}`", help=("leave --task out",))
    if not os.path.isfile(rest):
        what = "it is no regular file" if os.path.exists(rest) else "no such file"
        raise error("E081", f"{rest}: {what}")
    return name or None, Path(rest)


def job(
    run: Path,
    start: Path,
    files: dict[str, list[tuple[str | None, Path]]],
    settings: Any,
    model: str | None,
    device: str,
    *,
    resume: bool,
    silent: bool,
    trust: bool,
) -> dict[str, Any]:
    """Load, read, train, write; what was measured."""
    from peftc.capture.load import load_tokenizer
    from peftc.cli.bar import training_bar
    from peftc.cli.verbs.verify import load_quietly
    from peftc.planning.longest import said
    from peftc.rewrite.applied import APPLIED
    from peftc.train import Rows, evaluate, read_rows
    from peftc.train import train as train_graph
    from peftc.train.loop import checkpoints
    from peftc.train.run import end_run, note_event, start_run

    with progress(f"loading {start}"):
        graph = load_quietly(start, model, device, trust=trust)
        tokenizer = load_tokenizer(model or graph.meta[APPLIED].reference)
    if any(n < settings.length for n in graph.signature.longest.values()):
        note(f"texts are cut at {said(graph.signature.longest)}: the model has positions for no "
             f"more (`--length` is {settings.length})")  # fmt: skip
    found = {
        k: Rows([
            row
            for task, path in some
            for row in read_rows(
                path, graph, tokenizer, length=settings.length, task=task
            ).examples
        ])
        for k, some in files.items()
        if some
    }  # fmt: skip
    rows, held_out = found["train"], found.get("eval")
    pad = padding_of(graph, tokenizer)
    before = evaluate(graph, held_out, pad=pad) if held_out else None
    steps = settings.total(len(rows))
    if not resume:
        start_run(run, start, files, settings.to_json())
    with training_bar(steps, silent=silent) as watch:

        def seen(moment: Any) -> None:
            watch(moment)
            if moment.event != "step":
                said = moment.metrics if moment.event == "eval" else {"loss": moment.loss}
                note_event(run, event=moment.event, step=moment.step, **said)

        result = train_graph(
            graph, rows, pad=pad, steps=steps, batch=settings.batch, lr=settings.lr,
            seed=settings.seed, watch=seen, held_out=held_out, every=settings.every, folder=run,
            resume=resume and bool(checkpoints(run)),
        )  # fmt: skip
    after = evaluate(graph, held_out, pad=pad) if held_out else None
    note_event(run, event="interrupted" if result.interrupted else "finished", step=result.steps)
    end_run(graph, run, finished=not result.interrupted)
    return {
        "ok": not result.interrupted,
        "out": str(run),
        "steps": result.steps,
        "total": steps,
        "interrupted": result.interrupted,
        "losses": result.losses,
        "evaluations": result.evaluations,
        "best": result.best,
        "before": before,
        "after": after,
    }


def padding_of(graph: Any, tokenizer: Any) -> int:
    """The id that fills rows: the base's own, since a graph may look for it, else the tokenizer's.

    A classifier without an encoder reads the last token that is not this id.
    """
    own = getattr(graph.signature.config.get_text_config(), "pad_token_id", None)
    return own if isinstance(own, int) and own >= 0 else tokenizer.pad_token_id or 0


def summary(facts: dict[str, Any], same: list[str], device: list[str]) -> None:
    """What training did, in a few lines, and the next command, with options that were given."""
    out, before, after = facts["out"], facts["before"], facts["after"]
    last = f", loss {facts['losses'][-1][1]:.4f}" if facts["losses"] else ""
    done = f"trained {facts['steps']:,} steps"
    if facts["interrupted"]:
        done = f"interrupted after {facts['steps']:,} of {facts['total']:,} steps"
    say(f"{done}{last}")
    if before and after:
        say("eval: " + ", ".join(f"{n} {before[n]:.3f} -> {v:.3f}" for n, v in after.items()))
    best = ""
    if facts["best"] is not None:
        step, metric, value = facts["best"]
        best = f"  best dev {metric} {value:.3f} at step {step:,}."
    if facts["interrupted"]:
        again = command("train", out, "--resume", *same, *device)
        say(f"saved {out}{best}  To go on:  {again}")
    else:
        say(f"saved {out}{best}  Next:  {command('export', out, '--to', 'onnx', *same)}")
