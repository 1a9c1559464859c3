"""`peftc demo`: the main job, end to end, on a real encoder."""

from __future__ import annotations

import json as data
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, note, progress, say, table
from peftc.cli.options import Force, Json

ORDER = 10
EXAMPLES = ("peftc demo", "peftc demo -o here --steps 40")
SPEC, LABELS, STEPS = "houlsby", "past,future", 120
FORMATS = ("onnx", "torchscript")


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write.")] = Path("peftc-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = STEPS,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run the whole job on MiniLM: apply, train, export, verify."""
    from peftc.cli.claim import claim
    from peftc.ground.output.guard import DEMO
    from peftc.ground.output.staging import staged

    claim(out, force=force)
    start = time.perf_counter()
    with staged(out, force=force) as place:
        facts = job(place, out, steps, silent=json)
        (place / DEMO).write_text(data.dumps(facts, indent=1) + "\n", encoding="utf-8")
    facts["seconds"] = round(time.perf_counter() - start, 1)
    if json:
        emit(facts)
    else:
        closing(facts, out)
    if not facts["ok"]:
        raise typer.Exit(6)


def job(place: Path, out: Path, steps: int, *, silent: bool) -> dict[str, Any]:
    """Do everything, writing into `place`; what was measured."""
    from peftc.cli.demo.model import demo_model

    folder = demo_model(note)
    import peftc
    from peftc.capture import capture
    from peftc.capture.load import load_tokenizer
    from peftc.cli.bar import training_bar
    from peftc.cli.options import open_model
    from peftc.cli.verbs.plan import print_plan
    from peftc.cli.verbs.verify import print_report
    from peftc.rewrite.applied import APPLIED
    from peftc.rewrite.merging import foreseen
    from peftc.train import evaluate, read_rows, train

    if not silent:
        say("model   MiniLM-L6, a real sentence encoder of 22 million parameters")
        say("task    has it happened (past), or is it still to come (future)?")
        say()
    with progress("capturing the model and applying the spec"):
        model = open_model(str(folder), task="sequence-classification", labels=LABELS)
        base = capture(model)
        plan = peftc.plan(SPEC, base)
        graph = peftc.apply(SPEC, base)
        graph.meta[APPLIED].reference = str(folder)
    if not silent:
        print_plan(plan, SPEC, "MiniLM-L6", foreseen(plan))
        say()
    tokenizer = load_tokenizer(str(folder))
    data = Path(str(files("peftc.cli.demo")))
    rows = read_rows(data / "train.jsonl", graph, tokenizer)
    held_out = read_rows(data / "eval.jsonl", graph, tokenizer)
    pad = tokenizer.pad_token_id
    before = evaluate(graph, held_out, pad=pad)
    with training_bar(steps, silent=silent) as watch:
        result = train(graph, rows, pad=pad, steps=steps, batch=16, lr=1e-3, watch=watch)
    if result.interrupted:
        raise KeyboardInterrupt
    after = evaluate(graph, held_out, pad=pad)
    if not silent:
        print_training(len(rows), len(held_out), result.steps, before, after)
    peftc.save(graph, place / "artifact")
    reports = {}
    for kind in FORMATS:
        with progress(f"exporting to {kind} and verifying the file"):
            peftc.export(graph, kind, place / kind)
            reports[kind] = peftc.verify(graph, place / kind)
        if not silent:
            print_report(reports[kind])
            say()
    return {
        "ok": all(r.ok for r in reports.values()),
        "out": str(out),
        "plan": plan.to_json()["parameters"],
        "before": before,
        "after": after,
        "verify": {k: r.to_json() for k, r in reports.items()},
    }


def print_training(rows: int, held_out: int, steps: int, before: Any, after: Any) -> None:
    """Accuracy and loss before and after."""
    table(
        f"train   {rows} sentences, {steps} steps; measured on {held_out} of other frames",
        [("", ""), ("ACCURACY", "right"), ("LOSS", "right")],
        [
            ("before", f"{100 * before['accuracy']:.1f} %", f"{before['loss']:.3f}"),
            ("after", f"{100 * after['accuracy']:.1f} %", f"{after['loss']:.3f}"),
        ],
    )
    say("the base is bit-identical: its weights were hashed before and after")
    say()


def closing(facts: dict[str, Any], out: Path) -> None:
    """What lies where, and what to type next."""
    table(
        f"wrote   {out}/ in {facts['seconds']:.0f} s",
        [("FOLDER", ""), ("WHAT IT IS", ""), ("SIZE", "right")],
        [
            (f"{name}/", what, f"{size(out / name) / 1e6:.1f} MB")
            for name, what in (
                ("artifact", "spec, trained tensors, lock: peftc.load reads it"),
                ("onnx", "for ONNX Runtime"),
                ("torchscript", "for torch.jit.load, Python or C++"),
            )
        ],
    )
    say("Next:  peftc specs cp lora my.yaml  and  peftc apply my.yaml MODEL -o out")


def size(folder: Path) -> int:
    """Bytes in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
