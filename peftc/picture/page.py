"""The picture as a page of its own: a card for every insertion, a row for every site."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from peftc.dataflow.report import report, sizes, spans, where
from peftc.dataflow.site import Sites
from peftc.ground.markup import escape
from peftc.picture.blocks import drawn, picture
from peftc.planning.build import build_pieces
from peftc.planning.plan import Plan, Planned

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="generator" content="peftc">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>%(title)s</title><style>
:root{color-scheme:light dark;--ink:#26303c;--soft:#667080;--page:#fff;--edge:#e3e7ec;
--code:#f5f6f8;--green:#2f9e44;--leaf:#f1fbf3}
@media (prefers-color-scheme:dark){:root{--ink:#e3e8ef;--soft:#9aa6b5;--page:#14181e;
--edge:#303945;--code:#1b2129;--green:#4cc266;--leaf:#17271b}}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;color:var(--ink);
background:var(--page);max-width:1000px;margin:32px auto;padding:0 20px}
h1{font-size:22px;margin:0}h2{font-size:16px;margin:2px 0}p{margin:6px 0 14px;color:var(--soft)}
svg{width:100%%;height:auto;border:1px solid var(--edge);border-radius:12px}
.key{font-size:13px}.key i{display:inline-block;width:11px;height:11px;border-radius:3px;
margin:0 6px -1px 14px;border:1.5px solid}
section{border:1px solid var(--edge);border-left:5px solid var(--green);border-radius:8px;
padding:10px 16px;margin:14px 0;scroll-margin:20px}
section.plain{border-left-color:var(--edge)}section.amber{border-left-color:#d9a114}
section:target,tr:target{background:var(--leaf)}
code,pre{font:13px ui-monospace,"DejaVu Sans Mono",monospace}
pre{background:var(--code);padding:10px;border-radius:6px;overflow:auto;margin:8px 0 4px}
.scroll{overflow-x:auto}table{border-collapse:collapse}
td,th{text-align:left;padding:3px 22px 3px 0;font-size:13px;white-space:nowrap}
th{color:var(--soft);font-weight:500}td.wrap{white-space:normal;word-break:break-word}
</style><h1>%(title)s</h1><p>%(about)s</p>%(picture)s%(key)s%(cards)s</html>
"""
KEY = (
    '<p class="key">'
    '<i style="background:#e3f6e6;border-color:#2f9e44"></i>inserted'
    '<i style="background:#fff1cf;border-color:#d9a114"></i>trained in place'
    '<i style="background:#e9ecf1;border-color:#2f9e44"></i>frozen, its value changed'
    '<i style="background:#e9ecf1;border-color:#b6bfcb"></i>frozen. '
    "A click leads to the equation, the shapes, the modules and the lines of the spec.</p>"
)


def page(plan: Plan, model: str) -> str:
    """The plan as a page: the picture, a card for every insertion, and the sites."""
    share = 100 * plan.trainable / (plan.base + plan.inserted)
    about = (
        f"{plan.sites.program.signature.model_class}: {plan.base:,} parameters, "
        f"{plan.inserted:,} inserted, {plan.trainable:,} trained ({share:.2f} %). {plan.spec.about}"
    )
    cards = "".join(card(plan, p) for p in plan.insertions)
    cards += "".join(head_card(h) for h in plan.heads)
    cards += trained(plan) + places(plan.sites)
    return filled(f"{plan.spec.name} on {model}", about, picture(plan), KEY, cards)


def sites_page(sites: Sites, model: str) -> str:
    """What a model offers to target, as a page: its blocks, its sites, its modules."""
    from peftc.dataflow.select import module_paths

    about = f"{sites.program.signature.model_class}: a click on a box leads to its site."
    tree = "\n".join(module_paths(sites.program))
    modules = f'<section class="plain"><h2>Modules</h2><pre>{escape(tree)}</pre></section>'
    return filled(f"Sites of {model}", about, drawn(sites, (), model), "", places(sites) + modules)


def filled(title: str, about: str, drawing: str, key: str, cards: str) -> str:
    """A page of its parts."""
    return PAGE % {
        "title": escape(title),
        "about": escape(about),
        "picture": drawing,
        "key": key,
        "cards": cards,
    }


def card(plan: Plan, planned: Planned) -> str:
    """One insertion: equation, places, tensors, and the lines of the spec it came from."""
    insertion = planned.insertion
    rows = "".join(
        f"<tr><td>{escape(role)}</td><td>{escape(spans(layers))}</td>"
        f"<td>{escape(path)}</td><td>{escape(size)}</td></tr>"
        for role, layers, path, size in by_role(planned)
    )
    shapes = ", ".join(f"{n} {list(s)}" for n, s in tensors(plan, planned))
    lines = lines_of(plan, insertion.id)
    return (
        f'<section id="{escape(insertion.id)}"><h2>{escape(insertion.id)}</h2>'
        f"<code>h &larr; {escape(insertion.formula)}</code> &nbsp; "
        f"{planned.parameters:,} parameters"
        f'<div class="scroll"><table><tr><th>site</th><th>layers</th><th>module</th>'
        f"<th>features</th></tr>{rows}</table></div>"
        f"<p>at each: <code>{escape(shapes)}</code></p>"
        f"{f'<pre>{escape(lines)}</pre>' if lines else ''}</section>"
    )


def head_card(head: Any) -> str:
    """The head of a task: equation, what it reads, and its labels."""
    name = escape(f"tasks.{head.task}")
    labels = f"; labels: {', '.join(head.options.names)}" if head.options.names else ""
    return (
        f'<section id="{name}"><h2>{name}</h2><code>{escape(head.options.formula)}</code> &nbsp; '
        f"{head.parameters:,} parameters<p>{escape(head.kind)} of {escape(head.source)}"
        f"{escape(labels)}</p></section>"
    )


def tensors(plan: Plan, planned: Planned) -> Iterable[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the tensors of an insertion's first piece."""
    with torch.device("meta"):
        made = build_pieces(planned.insertion, planned.places[:1], plan.sites)
    for piece in made:
        for name, value in piece.named_parameters():
            yield name, tuple(value.shape)


def trained(plan: Plan) -> str:
    """What of the model itself is trained, and why."""
    if not plan.unfrozen:
        return ""
    roles = ", ".join(u.role or str(u.module) for u in plan.spec.unfreeze)
    names = ", ".join(plan.unfrozen)
    return (
        f'<section class="amber" id="unfrozen"><h2>trained in place: {escape(roles)}</h2>'
        f"{plan.unfrozen_count:,} parameters<p><code>{escape(names)}</code></p></section>"
    )


def places(sites: Sites) -> str:
    """Every site as a row that boxes lead to."""
    rows = "".join(
        f'<tr id="site-{escape(r["site"])}"><td>{escape(" ".join((r["stack"], r["site"])).strip())}'
        f"</td><td>{escape(r['layers'])}</td><td>{escape(r['width'])}</td>"
        f"<td>{escape(r['where'])}</td></tr>"
        for r in report(sites)
    )
    heads = "".join(
        f'<tr id="site-head"><td>head</td><td>-</td><td></td><td>{escape(n)}</td></tr>'
        for n in sites.parameters.get("head", ())
    )
    return (
        '<section class="plain"><h2>Sites</h2><div class="scroll"><table><tr><th>site</th>'
        f"<th>layers</th><th>features</th><th>module</th></tr>{rows}{heads}</table></div></section>"
    )


def by_role(planned: Planned) -> Iterable[tuple[str, list[int], str, str]]:
    """(role, layers, module path, sizes) of an insertion's places, stack by stack."""
    roles: dict[tuple[str, str], list[Any]] = {}
    for place in planned.places:
        roles.setdefault((place.stack, place.role), []).append(place)
    for (stack, role), found in roles.items():
        layers = sorted({p.layer for p in found if p.layer is not None})
        yield f"{stack} {role}".strip(), layers, where(found), sizes(found[0])


def lines_of(plan: Plan, ident: str) -> str:
    """The lines of the spec that say an insertion, with their numbers."""
    spec = plan.spec
    k = next(n for n, i in enumerate(spec.insert) if i.id == ident)
    span = spec.span("insert", k)
    if span is None:
        return ""
    lines = spec.source.lines
    last = span.line
    indent = len(span.text) - len(span.text.lstrip(" -"))
    while last < len(lines) and len(lines[last]) - len(lines[last].lstrip()) >= indent:
        last += 1
    numbered = [f"{n + 1:>3} | {lines[n]}" for n in range(span.line - 1, last)]
    return "\n".join([Path(span.file).name, *numbered])
