"""`peftc apply`: the rewrite, written as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import Steps, detail, emit, hint, progress, say
from peftc.cli.next_step import command, flags, training
from peftc.cli.options import (
    Anywhere,
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

CONTENTS = {
    "peft.safetensors": "trained tensors only; the base is found by its hash",
    "peftc.lock.json": "model, versions, every site with its path and size",
    "spec.yaml": "the spec after --set, every value resolved",
    "graph.txt": "the rewritten graph, one node a line",
    "graph.html": "picture",
    "README.md": "model card: spec, plan, counts, how to load",
}


def apply(
    spec: SpecArgument,
    model: PlannedModel = None,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="The artifact folder to write.")
    ],
    set: Set = None,
    anywhere: Anywhere = False,
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
    from peftc.cli.claim import claim
    from peftc.ground.diagnostics import error

    if insertion is not None and without is None:
        raise error("E008", "--insertion says of which insertion --without leaves out layers")
    if is_artifact(spec):
        given = {"--set": set, "--task": task, "--labels": labels, "--revision": revision,
                 "--dtype": dtype, "--attn": attn, "--static-length": static_length}  # fmt: skip
        drop(Path(spec), model, without, insertion, given, out,
             trust=trust, force=force, json=json)  # fmt: skip
        return
    given = {"task": task, "labels": labels, "revision": revision, "dtype": dtype, "attn": attn,
             "static_length": static_length}  # fmt: skip
    resolved, options, planned = spec_and_options(spec, model, set, given, anywhere=anywhere)
    if without is not None:
        if planned is not None:
            raise error("E008", f"--without: {spec} is a saved plan, which has decided the layers")
        resolved = resolved.without(without, insertion)
    model = str(options["model"])
    claim(out, force=force, inputs=(spec, model))
    steps = Steps(silent=json)
    graph, applied = rewritten(resolved, model, options, planned, spec, steps, seed=seed,
                               trust=trust, random_weights=random_weights)  # fmt: skip
    check(graph, applied, steps)
    write(graph, out, steps, force=force)
    counts = applied.plan["parameters"]
    from peftc.cli.verbs.plan import text_limit

    if json:
        emit({"ok": True, "out": str(out), "plan": applied.plan, "steps": steps.done,
              "longest": dict(applied.made.longest)})  # fmt: skip
        return
    list_files(out)
    whole = counts["base"] + counts["inserted"]
    say(f"trainable {counts['trainable']:,} of {whole:,} parameters")
    if text := text_limit(applied.made):
        say(text)
    ways = [training(graph, out, trust=trust), exporting(out, trust)]
    hint(f"Next:  {'   or   '.join(w for w in ways if w)}")


def rewritten(
    resolved: Any,
    model: str,
    options: dict[str, Any],
    planned: dict[str, Any] | None,
    spec: str,
    steps: Steps,
    *,
    seed: int,
    trust: bool,
    random_weights: bool,
) -> tuple[Any, Any]:
    """The model's graph with the spec's pieces in it, and what was done to it.

    Raises:
        PeftcError: E301 for a plan that was made for another model.
    """
    import peftc
    from peftc.planning.file import check_plan
    from peftc.rewrite.applied import APPLIED

    with steps.step("load") as facts:
        loaded = open_model(
            model, trust=trust, random_weights=random_weights,
            **{n: options[n] for n in OPENING},
        )  # fmt: skip
        commit = getattr(loaded.config, "_commit_hash", None)
        facts["what"] = f"{model}{f' @ {commit[:7]}' if commit else ''}  {type(loaded).__name__}"
    with steps.step("rewrite") as facts:
        graph = peftc.apply(resolved, loaded, seed=seed, static_length=options["static_length"])
        applied = graph.meta[APPLIED]
        if planned is not None:
            check_plan(planned, applied.plan, graph.signature.config, spec)
        count = sum(len(i["sites"]) for i in applied.plan["insertions"])
        unfrozen = len(applied.plan["unfrozen"])
        facts["what"] = f"{count} sites" + (f", {unfrozen} tensors unfrozen" if unfrozen else "")
        for r in applied.reports:
            detail(f"{r.name}: {len(r.difference)} lines of the graph changed, {r.seconds:.2f} s")
    applied.reference = model
    applied.random_weights = random_weights
    return graph, applied


def check(graph: Any, applied: Any, steps: Steps) -> None:
    """Run the graph with its insertions zeroed against the graph before.

    Raises:
        RuntimeError: where they differ, which is a fault of this package.
    """
    from peftc.rewrite.zeroed_check import frozen_difference

    with steps.step("check") as facts:
        found = frozen_difference(applied.base, graph, applied.plan)
        facts["difference"] = found
        facts["what"] = (
            "a prefix, prompt or task head is seen from its first step: not compared"
            if found is None
            else f"frozen path unchanged: max |diff| {found} with insertions zeroed"
        )
    if found:
        raise RuntimeError(f"the frozen path changed by {found}")


def write(graph: Any, out: Path, steps: Steps, *, force: bool) -> None:
    """Write the artifact."""
    import peftc

    with steps.step("write") as facts:
        peftc.save(graph, out, force=force)
        facts["what"] = f"{out}/"


def exporting(out: Path, trust: bool) -> str:
    """The command that exports an artifact."""
    return command("export", out, "--to", "onnx", *flags({"--trust-remote-code": trust}))


def list_files(folder: Path) -> None:
    """The files of an artifact, what each holds, and its size."""
    from peftc.ground.machine import size

    say(f"{folder}/")
    order = list(CONTENTS)
    rank = {p: order.index(p.name) if p.name in order else len(order) for p in folder.iterdir()}
    for path in sorted(rank, key=lambda p: (rank[p], p.name)):
        what = CONTENTS.get(path.name, "")
        say(f"  {path.name:<16} {what:<51} {size(path.stat().st_size):>9}")


def is_artifact(spec: str) -> bool:
    """Whether a command-line argument names an artifact folder rather than a spec."""
    from peftc.ground.output.recover import recovered

    if not Path(spec).exists():
        recovered(Path(spec))
    return (Path(spec) / "peftc.lock.json").is_file()


def drop(
    artifact: Path,
    model: str | None,
    without: str | None,
    insertion: str | None,
    given: dict[str, Any],
    out: Path,
    *,
    trust: bool,
    force: bool,
    json: bool,
) -> None:
    """Write an artifact again without its pieces in some layers.

    Raises:
        PeftcError: E008 without layers, or with options that an artifact has decided.
    """
    from peftc.cli.claim import claim
    from peftc.cli.verbs.verify import load_quietly
    from peftc.ground.diagnostics import error

    if without is None:
        raise error(
            "E008",
            f"{artifact} is applied already",
            help=("to leave out its pieces in some layers: --without 0-4",),
        )
    if decided := [name for name, value in given.items() if value]:
        raise error("E008", f"{artifact} is resolved: it has decided {', '.join(decided)}")
    claim(out, force=force, inputs=(artifact, model))
    with progress(f"loading {artifact}"):
        graph = load_quietly(artifact, model, without=without, insertion=insertion, trust=trust)
    import peftc
    from peftc.rewrite.applied import APPLIED

    peftc.save(graph, out, force=force)
    plan = graph.meta[APPLIED].plan
    if json:
        emit({"ok": True, "out": str(out), "plan": plan})
        return
    for planned in plan["insertions"]:
        say(f" {planned['id']:<16}{len(planned['sites'])} sites left")
    say(f"wrote {out}/")
    hint(f"Next:  {exporting(out, trust)}")
