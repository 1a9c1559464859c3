"""`peftc apply`: the rewrite, written as an artifact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import detail, emit, hint, progress, say
from peftc.cli.options import (
    Attn,
    Dtype,
    Force,
    Json,
    Labels,
    PlannedModel,
    RandomWeights,
    Revision,
    Set,
    SpecArgument,
    StaticLength,
    Task,
    Trust,
    open_model,
)  # fmt: skip
from peftc.cli.verbs.plan import OPTIONS, spec_and_options

ORDER = 5
EXAMPLES = (
    "peftc apply plan.json -o out",
    "peftc apply lora MODEL -o out --task sequence-classification --labels neg,pos",
    "peftc apply houlsby ./config-only -o out --random-weights",
)
CONTENTS = {
    "peft.safetensors": "trained tensors only; the base is found by its hash",
    "peftc.lock.json": "model, versions, every site with its module path and size",
    "spec.yaml": "the spec after --set, every value resolved",
    "graph.txt": "the rewritten graph, one node a line",
    "graph.html": "picture",
    "README.md": "model card: spec, plan, counts, how to load",
}


class Steps:
    """What was done, in how many seconds; printed as it goes."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.done: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a step; within, put what it did under "what"."""
        facts: dict[str, Any] = {"step": name}
        start = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - start, 2)
        self.done.append(facts)
        if not self.silent:
            say(f" {name:<9} {facts['what']:<68} {facts['seconds']:6.1f} s")


def apply(
    spec: SpecArgument,
    model: PlannedModel = None,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="The artifact folder to write.")
    ],
    set: Set = None,
    seed: Annotated[int, typer.Option(help="Of the fresh pieces.")] = 0,
    force: Force = False,
    task: Task = None,
    labels: Labels = None,
    revision: Revision = None,
    dtype: Dtype = None,
    attn: Attn = None,
    static_length: StaticLength = None,
    trust: Trust = False,
    random_weights: RandomWeights = False,
    json: Json = False,
) -> None:
    """Rewrite a model, and write what is trained as an artifact."""
    from peftc.files import check_free

    given = {"task": task, "labels": labels, "revision": revision, "dtype": dtype, "attn": attn,
             "static_length": static_length}  # fmt: skip
    resolved, options, planned = spec_and_options(spec, model, set, given)
    check_free(out, force=force)
    model = str(options["model"])
    steps = Steps(silent=json)
    with progress(f"loading and capturing {model}"):
        program = captured(model, options, trust, random_weights, steps)
    graph, applied = rewritten(resolved, program, planned, spec, seed, steps)
    applied.reference = model
    applied.random_weights = random_weights
    check(program, graph, applied, steps)
    write(graph, out, force, steps)
    counts = applied.plan["parameters"]
    if json:
        emit({"ok": True, "out": str(out), "plan": applied.plan, "steps": steps.done})
        return
    from peftc.machine import size

    say(f"{out}/")
    for path in sorted(out.iterdir(), key=lambda p: list(CONTENTS).index(p.name)):
        say(f"  {path.name:<18} {CONTENTS[path.name]:<58} {size(path.stat().st_size):>9}")
    whole = counts["base"] + counts["inserted"]
    say(f"trainable {counts['trainable']:,} of {whole:,} parameters")
    hint(f"Next:  peftc train {out} --data train.jsonl   or   peftc export {out} --to onnx")


def captured(
    model: str, options: dict[str, Any], trust: bool, random_weights: bool, steps: Steps
) -> Any:
    """The model's Program."""
    with steps.step("capture") as facts:
        loaded = open_model(
            model, trust=trust, random_weights=random_weights,
            **{n: options[n] for n in OPTIONS[:-1]},
        )  # fmt: skip
        from peftc.capture import capture

        program = capture(loaded, static_length=options["static_length"])
        commit = getattr(loaded.config, "_commit_hash", None)
        free = f"length {options['static_length']}" if options["static_length"] else "free length"
        facts["what"] = (
            f"{model}{f' @ {commit[:7]}' if commit else ''}   torch.export, free batch, {free}"
        )
    return program


def rewritten(
    resolved: Any, program: Any, planned: Any, spec: str, seed: int, steps: Steps
) -> tuple[Any, Any]:
    """The graph with the spec's pieces in it, and what was done to it.

    Raises:
        PeftcError: E301 for a plan that was made for another model.
    """
    import peftc
    from peftc.api import APPLIED
    from peftc.plan_file import check_plan

    with steps.step("rewrite") as facts:
        graph = peftc.apply(resolved, program, seed=seed)
        applied = graph.meta[APPLIED]
        if planned is not None:
            check_plan(planned, applied.plan, graph.signature.config, spec)
        count = sum(len(i["sites"]) for i in applied.plan["insertions"])
        unfrozen = len(applied.plan["unfrozen"])
        facts["what"] = f"{count} sites" + (f", {unfrozen} tensors unfrozen" if unfrozen else "")
    for report in applied.reports:
        detail(f"   {report.name}: {len(report.difference)} lines, {report.seconds:.2f} s")
    return graph, applied


def check(before: Any, graph: Any, applied: Any, steps: Steps) -> None:
    """Run the graph with its insertions zeroed against the graph before.

    Raises:
        RuntimeError: where they differ, which is a fault of this package.
    """
    from peftc.frozen import frozen_difference

    with steps.step("check") as facts:
        found = frozen_difference(before, graph, applied.plan)
        facts["difference"] = found
        facts["what"] = (
            "a prefix or prompt is seen from its first step: nothing to compare"
            if found is None
            else f"frozen path unchanged: max |diff| {found} with insertions zeroed"
        )
    if found:
        raise RuntimeError(f"the frozen path changed by {found}")


def write(graph: Any, out: Path, force: bool, steps: Steps) -> None:
    """Write the artifact."""
    import peftc
    from peftc.machine import check_disk, size

    with steps.step("write") as facts:
        tensors = sum(p.numel() * p.element_size() for p in peftc.trainable(graph).values())
        check_disk(out, tensors + 4_000_000, "apply", parts=f"{size(tensors)} tensors")
        peftc.save(graph, out, force=force)
        facts["what"] = f"{out}/"
