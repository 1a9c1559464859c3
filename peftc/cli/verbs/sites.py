"""`peftc sites`: what a model offers to target."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, hint, progress, say, table
from peftc.cli.next_step import command, flags
from peftc.cli.options import (
    Attn,
    Force,
    Json,
    Labels,
    ModelArgument,
    Revision,
    StaticLength,
    Task,
    Trust,
    open_model,
)
from peftc.ground.diagnostics import error
from peftc.ground.output.guard import check_absent

ORDER = 2
EXAMPLES = (
    "peftc sites MODEL",
    "peftc sites MODEL --stack decoder --grep 'cross.*'",
    "peftc sites MODEL --modules --grep '*query'",
    "peftc sites MODEL --html tree.html",
)
STACKS = ("any", "encoder", "decoder")


def sites(
    model: ModelArgument,
    stack: Annotated[str, typer.Option(metavar="STACK", help="any, encoder or decoder.")] = "any",
    grep: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only rows with this text, or glob.")
    ] = None,
    modules: Annotated[bool, typer.Option("--modules", help="List module paths.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw them as a page of its own.")
    ] = None,
    force: Force = False,
    task: Task = None,
    labels: Labels = None,
    revision: Revision = None,
    attn: Attn = None,
    static_length: StaticLength = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Show what can be targeted in a model. No weights are read."""
    if stack not in STACKS:
        raise error(
            "E008", f"--stack {stack}: no such stack", help=(f"one of: {', '.join(STACKS)}",)
        )
    if html is not None:
        check_absent(html, force=force)
    import peftc
    from peftc.dataflow.report import absent_roles, report
    from peftc.dataflow.select import module_paths

    with progress(f"capturing {model}"):
        loaded = open_model(
            model, task=task, labels=labels, revision=revision, attn=attn, trust=trust,
            weights=False,
        )  # fmt: skip
        found = peftc.sites(loaded, static_length=static_length)
    if html is not None:
        draw(found, model, html, force)
    if modules:
        paths = [p for p in module_paths(found.program) if matches(p, grep)]
        if json:
            emit({"modules": paths})
        else:
            say("\n".join(paths))
        return
    rows = [
        r
        for r in (*report(found), *head_rows(found))
        if stack in ("any", r["stack"]) and any(matches(str(v), grep) for v in r.values())
    ]
    if json:
        written = [str(html)] if html is not None else []
        emit({"model": model, "layers": found.layers, "sites": rows,
              "absent": absent_roles(found), "written": written})  # fmt: skip
        return
    show(model, found, rows)
    said = {"--task": task, "--labels": labels, "--revision": revision, "--attn": attn,
            "--static-length": static_length, "--trust-remote-code": trust}  # fmt: skip
    if (spec := fitting(found)) is not None:
        hint(f"Next:  {command('plan', spec, model, *flags(said))}")
    if html is not None:
        say(f"wrote {html}")


def show(model: str, found: Any, rows: list[dict[str, Any]]) -> None:
    """The table, and what the model lacks."""
    say(headline(model, found), "bold")
    say()
    with_stack = any(r["stack"] for r in rows)
    table(
        "",
        [*([("STACK", "")] if with_stack else []), ("SITE", ""), ("LAYERS", "right"),
         ("WIDTH", "right"), ("WHERE", ""), ("GOOD FOR", "")],
        [
            (*([r["stack"]] if with_stack else []), r["site"], r["layers"], r["width"],
             r["where"] + ("  *" if r["fused"] else ""), r["good_for"])
            for r in rows
        ],
    )  # fmt: skip
    if not rows:
        say("no site matches")
    if any(r["fused"] for r in rows):
        say("* one fused weight; peftc changes only that part of it")
    if absent := lacking(found):
        say(f"Not in this model: {', '.join(absent)}")


def fitting(found: Any) -> str | None:
    """A shipped spec whose roles the model has, LoRA if it can be; None where there is none."""
    from peftc.dataflow.report import absent_roles
    from peftc.spec import load_spec
    from peftc.spec.catalogue import names

    absent = absent_roles(found)
    for name in ("lora", *names()):
        insert = load_spec(name).insert
        if insert and not any(str(role) in absent for i in insert for role in i.at):
            return name
    return None


def lacking(found: Any) -> list[str]:
    """Roles that the model does not have, those of a whole family as one."""
    from peftc.dataflow.report import GOOD_FOR, absent_roles

    families = {"cross": "no cross-attention", "ffn": "no feed-forward", "attn": "no attention"}
    absent = absent_roles(found)
    result: list[str] = []
    for role in absent:
        family = role.partition(".")[0]
        members = [r for r in GOOD_FOR if r.startswith(f"{family}.")]
        if family in families and all(r in absent for r in members):
            entry = f"{family}.*  ({families[family]})"
        else:
            entry = role
        if entry not in result:
            result.append(entry)
    return result


def head_rows(found: Any) -> list[dict[str, Any]]:
    """What `unfreeze: {role: head}` trains: the modules that the task added."""
    weights = dict(found.program.named_parameters())
    rows = []
    for name in found.parameters.get("head", ()):
        value = weights[name]
        if value.dim() == 2:
            rows.append({
                "site": "head", "stack": "", "count": 1, "layers": "-",
                "width": f"{value.shape[1]} > {value.shape[0]}",
                "where": name.rpartition(".")[0], "fused": False, "good_for": "unfreeze",
            })  # fmt: skip
    return rows


def draw(found: Any, model: str, path: Path, force: bool) -> None:
    """The sites as a page."""
    from peftc.ground.output.text import write_text
    from peftc.picture import sites_page

    write_text(path, sites_page(found, model), force=force)


def matches(text: str, pattern: str | None) -> bool:
    """Whether a text holds a pattern, or matches it as a glob."""
    return pattern is None or pattern in text or fnmatchcase(text, pattern)


def headline(model: str, found: Any) -> str:
    """One line on the model."""
    signature = found.program.signature
    counts = " + ".join(
        f"{n} {stack + ' ' if stack else ''}blocks" for stack, n in found.layers.items()
    )
    width = found.starts[0].width if found.starts else None
    parts = [f"{model}  {signature.model_class}  {counts}"]
    if width:
        parts.append(f"width {width}")
    if found.attentions:
        a = found.attentions[0]
        shared = f" ({a.kv_heads} for keys and values)" if a.kv_heads != a.heads else ""
        parts.append(f"{a.heads} heads x {a.head_dim}{shared}")
    if (kind := norm_kind(found)) is not None:
        parts.append(kind)
    if signature.loss == "ForCausalLM" and "decoder" not in found.layers:
        parts.append("causal")
    return ", ".join(parts) + "   (no weights loaded)"


def norm_kind(found: Any) -> str | None:
    """Where the norms stand: behind the residual sums (post-norm), or before what reads them."""
    from peftc.passes.insert import following_norm

    for out in (s for s in found.sites if s.role == "attn.out"):
        if following_norm(out) is not None:
            return "post-norm"
        reads = [s.x for s in found.sites if (s.role, s.layer, s.stack) ==
                 ("attn.q", out.layer, out.stack)]  # fmt: skip
        return "pre-norm" if reads and reads[0] is not out.stream else None
    return None
