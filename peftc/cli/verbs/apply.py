"""`peftc apply`: the rewrite, written as an artifact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say
from peftc.cli.options import (
    Attn,
    Dtype,
    Force,
    Json,
    Labels,
    Only,
    PlannedModel,
    RandomWeights,
    Revision,
    Set,
    SpecArgument,
    StaticLength,
    Task,
    Trust,
    Without,
    open_model,
)  # fmt: skip
from peftc.cli.spec_argument import OPENING, spec_and_options

ORDER = 5
EXAMPLES = (
    "peftc apply plan.json -o out",
    "peftc apply lora MODEL -o out --task sequence-classification --labels neg,pos",
    "peftc apply houlsby ./config-only -o out --random-weights",
    "peftc apply out --without 0-4 -o less",
)


def apply(
    spec: SpecArgument,
    model: PlannedModel = None,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="The artifact folder to write.")
    ],
    set: Set = None,
    task: Task = None,
    labels: Labels = None,
    seed: Annotated[int, typer.Option(help="Of the fresh pieces.")] = 0,
    revision: Revision = None,
    dtype: Dtype = None,
    attn: Attn = None,
    static_length: StaticLength = None,
    without: Without = None,
    insertion: Only = None,
    trust: Trust = False,
    random_weights: RandomWeights = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Rewrite a model as the spec says, and write the artifact: only what is trained.

    SPEC may be a plan, or with --without an artifact: its pieces in those layers are dropped.
    """
    from peftc.diagnostics import error
    from peftc.files import check_free

    if insertion is not None and without is None:
        raise error("E008", "--insertion says of which insertion --without leaves out layers")
    if is_artifact(spec):
        given = {"--set": set, "--task": task, "--labels": labels, "--revision": revision,
                 "--dtype": dtype, "--attn": attn, "--static-length": static_length}  # fmt: skip
        drop(Path(spec), model, without, insertion, given, out, force=force, json=json)
        return
    given = {"task": task, "labels": labels, "revision": revision, "dtype": dtype, "attn": attn,
             "static_length": static_length}  # fmt: skip
    resolved, options, planned = spec_and_options(spec, model, set, given)
    if without is not None:
        if planned is not None:
            raise error("E008", f"--without: {spec} is a saved plan, which has decided the layers")
        resolved = resolved.without(without, insertion)
    model = str(options["model"])
    check_free(out, force=force)
    import peftc
    from peftc.api import APPLIED
    from peftc.plan_file import check_plan

    steps: list[tuple[str, str, float]] = []
    start = time.perf_counter()
    with progress(f"loading {model}"):
        loaded = open_model(
            model, trust=trust, random_weights=random_weights,
            **{n: options[n] for n in OPENING},
        )  # fmt: skip
    steps.append(("load", f"{model}  {type(loaded).__name__}", since(start)))
    start = time.perf_counter()
    with progress("capturing and rewriting"):
        graph = peftc.apply(resolved, loaded, seed=seed, static_length=options["static_length"])
    applied = graph.meta[APPLIED]
    if planned is not None:
        check_plan(planned, applied.plan, graph.signature.config, spec)
    applied.reference = model
    applied.random_weights = random_weights
    count = sum(len(i["sites"]) for i in applied.plan["insertions"])
    steps.append(("rewrite", f"{count} sites, {len(graph.graph.nodes):,} nodes", since(start)))
    start = time.perf_counter()
    peftc.save(graph, out, force=force)
    steps.append(("write", f"{out}/", since(start)))
    counts = applied.plan["parameters"]
    if json:
        emit({"ok": True, "out": str(out), "plan": applied.plan})
        return
    for name, what, seconds in steps:
        say(f" {name:<10}{what:<56}{seconds:6.1f} s")
    for path in sorted(out.iterdir()):
        say(f"   {path.name:<20}{path.stat().st_size:>12,} bytes")
    say(f"trainable {counts['trainable']:,} of {counts['base'] + counts['inserted']:,} parameters")
    say(f"Next:  peftc train {out} --data train.jsonl   or   peftc export {out} --to onnx")


def is_artifact(spec: str) -> bool:
    """Whether a command-line argument names an artifact folder rather than a spec."""
    return (Path(spec) / "peftc.lock.json").is_file()


def drop(
    artifact: Path,
    model: str | None,
    without: str | None,
    insertion: str | None,
    given: dict[str, Any],
    out: Path,
    *,
    force: bool,
    json: bool,
) -> None:
    """Write an artifact again without its pieces in some layers.

    Raises:
        PeftcError: E008 without layers, or with options that an artifact has decided.
    """
    from peftc.cli.verbs.verify import load_quietly
    from peftc.diagnostics import error
    from peftc.files import check_free

    if without is None:
        raise error(
            "E008",
            f"{artifact} is applied already",
            help=("to leave out its pieces in some layers: --without 0-4",),
        )
    if decided := [name for name, value in given.items() if value]:
        raise error("E008", f"{artifact} is resolved: it has decided {', '.join(decided)}")
    check_free(out, force=force)
    with progress(f"loading {artifact}"):
        graph = load_quietly(artifact, model, without=without, insertion=insertion)
    import peftc
    from peftc.api import APPLIED

    peftc.save(graph, out, force=force)
    plan = graph.meta[APPLIED].plan
    if json:
        emit({"ok": True, "out": str(out), "plan": plan})
        return
    for planned in plan["insertions"]:
        say(f" {planned['id']:<16}{len(planned['sites'])} sites left")
    say(f"wrote {out}/.  Next:  peftc export {out} --to onnx")


def since(start: float) -> float:
    """Seconds since a moment."""
    return time.perf_counter() - start
