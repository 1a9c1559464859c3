"""`peftc sites`: what a model offers to target."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, progress, say, table
from peftc.cli.options import (
    Attn,
    Json,
    Labels,
    ModelArgument,
    Revision,
    StaticLength,
    Task,
    Trust,
    open_model,
)

ORDER = 2


def sites(
    model: ModelArgument,
    stack: Annotated[str, typer.Option(help="any, encoder or decoder.")] = "any",
    grep: Annotated[str | None, typer.Option(help="Only rows with this text.")] = None,
    modules: Annotated[bool, typer.Option("--modules", help="List module paths.")] = False,
    task: Task = None,
    labels: Labels = None,
    revision: Revision = None,
    attn: Attn = None,
    static_length: StaticLength = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Show what can be targeted in a model: roles, layers, sizes, places. No weights are read."""
    import peftc
    from peftc.dataflow.report import absent_roles, report
    from peftc.dataflow.select import module_paths

    with progress(f"capturing {model}"):
        loaded = open_model(
            model, task=task, labels=labels, revision=revision, attn=attn, trust=trust,
            weights=False,
        )  # fmt: skip
        found = peftc.sites(loaded, static_length=static_length)
    if modules:
        paths = [p for p in module_paths(found.program) if matches(p, grep)]
        if json:
            emit({"modules": paths})
        else:
            say("\n".join(paths))
        return
    rows = [
        r
        for r in report(found)
        if stack in ("any", r["stack"]) and any(matches(str(v), grep) for v in r.values())
    ]
    if json:
        emit({"model": model, "layers": found.layers, "sites": rows, "absent": absent_roles(found)})
        return
    say(headline(model, found))
    with_stack = any(r["stack"] for r in rows)
    table(
        "",
        [*([("STACK", "")] if with_stack else []), ("SITE", ""), ("LAYERS", "right"),
         ("WIDTH", "right"), ("WHERE", ""), ("GOOD FOR", "")],
        [
            (*([r["stack"]] if with_stack else []), r["site"], r["layers"], r["width"],
             r["where"] + (" *" if r["fused"] else ""), r["good_for"])
            for r in rows
        ],
    )  # fmt: skip
    if any(r["fused"] for r in rows):
        say("* one fused weight; only that part of it is changed")
    if absent := absent_roles(found):
        say(f"Not in this model: {', '.join(absent)}")


def matches(text: str, pattern: str | None) -> bool:
    """Whether a text holds a pattern, or matches it as a glob."""
    return pattern is None or pattern in text or fnmatchcase(text, pattern)


def headline(model: str, found: Any) -> str:
    """One line on the model."""
    signature = found.program.signature
    counts = " + ".join(
        f"{n} {stack + ' ' if stack else ''}blocks" for stack, n in found.layers.items()
    )
    width = found.embeddings[0].site.width if found.embeddings else None
    parts = [f"{model}  {signature.model_class}  {counts}"]
    if width:
        parts.append(f"width {width}")
    if found.attentions:
        a = found.attentions[0]
        parts.append(f"{a.heads} heads x {a.head_dim}")
    return ", ".join(parts) + "   (no weights loaded)"
