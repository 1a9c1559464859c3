"""`peftc plan`: what apply would do, as a table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from peftc.cli.console import complain, emit, progress, say, table
from peftc.cli.options import (
    Attn,
    Json,
    Labels,
    ModelArgument,
    Offline,
    Revision,
    Set,
    SpecArgument,
    StaticLength,
    Task,
    Trust,
    assignments,
    open_model,
)  # fmt: skip

ORDER = 4


def plan(
    spec: SpecArgument,
    model: ModelArgument,
    set: Set = None,
    task: Task = None,
    labels: Labels = None,
    revision: Revision = None,
    attn: Attn = None,
    static_length: StaticLength = None,
    trust: Trust = False,
    offline: Offline = False,
    all_sites: Annotated[bool, typer.Option("--all-sites", help="List every site.")] = False,
    json: Json = False,
) -> None:
    """Show what apply would insert and train, site by site. No weights are read."""
    import peftc
    from peftc.spec import load_spec

    resolved = load_spec(spec, set=assignments(set))
    with progress(f"capturing {model}"):
        loaded = open_model(
            model, task=task, labels=labels, revision=revision, attn=attn, trust=trust,
            offline=offline, weights=False,
        )  # fmt: skip
        made = peftc.plan(resolved, loaded, static_length=static_length)
    if json:
        emit(made.to_json())
        return
    print_plan(made, spec, model, all_sites)
    say(f"Next:  peftc apply {spec} {model} -o out/")


def print_plan(made: Any, spec: str, model: str, all_sites: bool = False) -> None:
    """The plan as a table, its sums, and its notes."""
    layers = ", ".join(f"{n}{' ' + s if s else ''} layers" for s, n in made.sites.layers.items())
    say(f"peftc plan  {spec}  ->  {model}  ({layers}, {made.base:,} frozen)", "bold")
    table(
        "",
        [("", ""), ("ID", ""), ("AT", ""), ("LAYERS", ""), ("SITES", "right"),
         ("H BECOMES", ""), ("PARAMS", "right")],
        [*(insertion_row(p) for p in made.insertions), *unfreeze_rows(made)],
    )  # fmt: skip
    share = 100 * made.trainable / (made.base + made.inserted)
    say(
        f"Plan: {len(made.insertions)} to insert, {len(made.unfrozen)} to unfreeze.  "
        f"trainable {made.trainable:,} of {made.base + made.inserted:,} ({share:.2f} %)"
    )
    if all_sites:
        for p in made.insertions:
            for place in p.places:
                say(f"  {p.insertion.id:<16} {place.name:<28} {place.module}")
    if made.notes:
        complain(made.notes)


def insertion_row(p: Any) -> tuple[str, ...]:
    """One insertion."""
    from peftc.dataflow.report import spans

    facts = type(p.insertion.delta.options)
    at = ", ".join(p.counts)
    return (
        "+", p.insertion.id, at, spans(list(p.layers)), str(len(p.places)), facts.formula,
        f"{p.parameters:,}",
    )  # fmt: skip


def unfreeze_rows(made: Any) -> list[tuple[str, ...]]:
    """What of the model itself is trained."""
    if not made.unfrozen:
        return []
    roles = {u.role or u.module for u in made.spec.unfreeze}
    return [
        ("~", ", ".join(sorted(roles)), "-", "-", str(len(made.unfrozen)), "trained in place",
         f"{made.unfrozen_count:,}")
    ]  # fmt: skip
