"""`peftc plan`: what apply would do, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import complain, emit, hint, note, progress, say, table
from peftc.cli.next_step import command, flags, free
from peftc.cli.options import (
    Anywhere,
    Attn,
    Dtype,
    Force,
    Json,
    Labels,
    PlannedModel,
    Revision,
    Set,
    SpecArgument,
    StaticLength,
    Task,
    Trust,
    open_model,
)  # fmt: skip
from peftc.cli.spec_argument import OPENING, spec_and_options
from peftc.ground.diagnostics import error
from peftc.ground.output.guard import check_absent

ORDER = 4
EXAMPLES = (
    "peftc plan lora MODEL",
    "peftc plan my.yaml MODEL --set rank=16 -o plan.json --html plan.html",
    "peftc plan houlsby MODEL --task sequence-classification --labels neg,pos --all-sites",
)


def plan(
    spec: SpecArgument,
    model: PlannedModel = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Save the plan, for `peftc apply`."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it as a page of its own.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it as a picture.")] = None,
    all_sites: Annotated[bool, typer.Option("--all-sites", help="List every site.")] = False,
    set: Set = None,
    anywhere: Anywhere = False,
    force: Force = False,
    task: Task = None,
    labels: Labels = None,
    revision: Revision = None,
    dtype: Dtype = None,
    attn: Attn = None,
    static_length: StaticLength = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Show what apply would insert and train. No weights are read.

    A saved plan as SPEC is made again, and refused where the model is no longer the same.
    """
    given = {"task": task, "labels": labels, "revision": revision, "dtype": dtype, "attn": attn,
             "static_length": static_length}  # fmt: skip
    resolved, options, planned = spec_and_options(spec, model, set, given, anywhere=anywhere)
    files = [p for p in (out, html, svg) if p is not None]
    for k, path in enumerate(files):
        check_absent(path, force=force, inputs=(spec,))
        if path in files[:k]:
            raise error("E008", f"{path} is to hold two things", help=("give each its own name",))
    import peftc
    from peftc.capture.load import has_weights
    from peftc.planning.file import check_plan
    from peftc.rewrite.merging import foreseen

    model = str(options["model"])
    with progress(f"capturing {model}"):
        loaded = open_model(model, trust=trust, weights=False,
                            **{n: options[n] for n in OPENING})  # fmt: skip
        made = peftc.plan(resolved, loaded, static_length=options["static_length"])
    if planned is not None:
        check_plan(planned, made.to_json(), made.sites.program.signature.config, spec)
    outcomes = foreseen(made)  # also refuses what `apply` would refuse
    written = write(made, options, out, html, svg, force=force)
    if json:
        from peftc.rewrite.estimate import after_fold, needs

        facts = {
            "needs": needs(made), "after_fold": after_fold(made, outcomes),
            "longest": dict(made.longest),
        }  # fmt: skip
        emit({**made.to_json(), **facts, "written": [str(p) for p in written]})
        return
    print_plan(made, spec, model, outcomes, all_sites)
    for path in written:
        say(f"wrote {path}")
    saved = out or (Path(spec) if planned is not None else None)
    said = {"--set": set, "--allow-use-anywhere": anywhere,
            **{f"--{n.replace('_', '-')}": v for n, v in given.items()}}  # fmt: skip
    unread = {"--trust-remote-code": trust, "--random-weights": not has_weights(model)}
    what = [saved] if saved is not None else [spec, model, *flags(said)]
    hint(f"Next:  {command('apply', *what, *flags(unread), '-o', free('out'))}")


def write(
    made: Any,
    options: dict[str, Any],
    out: Path | None,
    html: Path | None,
    svg: Path | None,
    *,
    force: bool,
) -> list[Path]:
    """Write the plan's files that were asked for."""
    from peftc.ground.output.text import write_text
    from peftc.picture import page, picture
    from peftc.planning.file import save_plan

    if out is not None:
        save_plan(made, out, options, force=force)
    if html is not None:
        write_text(html, page(made, str(options["model"])), force=force)
    if svg is not None:
        write_text(svg, picture(made), force=force)
    return [p for p in (out, html, svg) if p is not None]


def print_plan(
    made: Any, spec: str, model: str, outcomes: list[Any], all_sites: bool = False
) -> None:
    """The plan as a table, its sums, what it needs, and its notes."""
    from peftc.ground.machine import size
    from peftc.rewrite.estimate import BATCH, LENGTH, after_fold, dropped_networks, needs, short
    from peftc.rewrite.merging import apart

    layers = ", ".join(f"{n}{' ' + s if s else ''} layers" for s, n in made.sites.layers.items())
    width = f", width {made.sites.starts[0].width}" if made.sites.starts else ""
    say(f"peftc plan  {spec}  ->  {model}  ({layers}{width}, {short(made.base)} frozen)", "bold")
    say("  + insert   ~ becomes trainable")
    say()
    table(
        "",
        [("", ""), ("ID", ""), ("AT", ""), ("LAYERS", ""), ("SITES", "right"),
         ("H BECOMES", ""), ("PARAMS", "right")],
        [*(insertion_row(p) for p in made.insertions), *head_rows(made), *unfreeze_rows(made)],
    )  # fmt: skip
    say()
    whole = made.base + made.inserted
    say(
        f"Plan: {len(made.insertions)} to insert, {len(made.unfrozen)} to unfreeze.  "
        f"trainable {made.trainable:,} of {whole:,} ({100 * made.trainable / whole:.2f} %)"
    )
    folds = "; ".join(after_fold(made, outcomes))
    say(f"Inputs and outputs: {ends(made)}.{f'   After fold: {folds}.' if folds else ''}")
    if text := text_limit(made):
        say(text)
    needed = needs(made)
    say(
        f"Needs: RAM {size(needed['ram'])}, disk {size(needed['disk'])}, training about "
        f"{size(needed['training'])} on a GPU at batch {BATCH} x {LENGTH} (estimate)."
    )
    if all_sites:
        say()
        table(
            "",
            [("ID", ""), ("SITE", ""), ("MODULE", "")],
            [(p.insertion.id, place.name, place.module) for p in made.insertions
             for place in p.places],
        )  # fmt: skip
    for text in dropped_networks(made, outcomes):
        note(f"note: {text}")
    if notes := [*made.notes, *apart(made.spec, outcomes)]:
        complain(notes)


def ends(made: Any) -> str:
    """What becomes of the model's inputs and outputs."""
    if made.heads:
        from peftc.passes.tasks import OUTPUTS

        signature = made.sites.program.signature
        gone = ", ".join(o.name for o in signature.outputs)
        several = len(made.heads) > 1
        outputs = [
            f"{name}_{h.task}" if several else name
            for h in made.heads
            for name in OUTPUTS[h.options.loss][0]
        ]
        numbers = ", ".join(f"{k} for {h.task}" for k, h in enumerate(made.heads))
        added = f"task_ids is added, a number for each row ({numbers}); " if several else ""
        return f"{added}{', '.join(outputs)} in place of {gone}"
    longer = [
        p.insertion.id
        for p in made.insertions
        if p.insertion.composition.kind == "prepend" and not p.insertion.composition.options.trim
    ]
    return f"outputs keep the tokens of {', '.join(longer)}" if longer else "unchanged"


def text_limit(made: Any) -> str:
    """The longest text that is left, where the spec takes positions from it."""
    from peftc.planning.longest import said, tokens_in_front

    front = tokens_in_front(made.insertions, made.tasks)
    if not front or not made.longest:
        return ""
    taken = ", ".join(f"{n}{' in the ' + s if s else ''}" for s, n in front.items())
    return f"Longest text: {said(made.longest)}, behind {taken} inserted."


def insertion_row(p: Any) -> tuple[str, ...]:
    """One insertion."""
    from peftc.dataflow.report import spans

    at = ", ".join(p.counts)
    own = ", per task" if p.insertion.share == "per_task" else ""
    return (
        "+", p.insertion.id, at, spans(list(p.layers)), str(len(p.places)),
        f"{p.insertion.formula}{own}", f"{p.parameters:,}",
    )  # fmt: skip


def head_rows(made: Any) -> list[tuple[str, ...]]:
    """The heads of tasks."""
    return [
        ("+", f"tasks.{h.task}", h.source, "-", "1", h.options.formula,
         f"{h.parameters:,}")
        for h in made.heads
    ]  # fmt: skip


def unfreeze_rows(made: Any) -> list[tuple[str, ...]]:
    """What of the model itself is trained."""
    if not made.unfrozen:
        return []
    roles = {u.role or u.module for u in made.spec.unfreeze}
    return [
        ("~", ", ".join(sorted(roles)), "-", "-", str(len(made.unfrozen)), "trained in place",
         f"{made.unfrozen_count:,}")
    ]  # fmt: skip
