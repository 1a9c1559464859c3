"""A plan as a picture: one block of the model, what is inserted marked, and where it was said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from peftc.dataflow.report import sizes, spans, where
from peftc.planner import Plan, Planned
from peftc.task_plan import PlannedHead

STYLE = """
.line{stroke:#9aa4b2;stroke-width:1.5;fill:none}.stream{stroke:#3b4656;stroke-width:3}
.block{fill:#f7f8fa;stroke:#d5dae1}.frozen{fill:#e9ecf1;stroke:#b6bfcb}
.trained{fill:#fff1cf;stroke:#d9a114}.piece{fill:#d8f3dc;stroke:#2f9e44;stroke-width:1.6}
text{font:13px system-ui,sans-serif;fill:#26303c}.small{font-size:11px;fill:#667080}
.green{fill:#1b6e2e;font-weight:600}.title{font-weight:600}
"""
STAGES = {
    "attn": (("q", "k", "v"), ("kv",), ("heads",), ("out",)),
    "cross": (("q", "k", "v"), ("kv",), ("heads",), ("out",)),
    "ffn": (("gate", "up"), ("act",), ("down",), ("out",)),
    "mixer": (("out",),),
}
TITLES = {"attn": "self-attention", "cross": "cross-attention", "ffn": "feed-forward",
          "mixer": "mixer"}  # fmt: skip
LABELS = {"kv": "softmax(q k)", "heads": "heads", "act": "act"}
BOX, HIGH, GAP, LEFT, STEP = 116, 34, 36, 150, 46


@dataclass
class Drawing:
    """SVG elements and how far down they reach."""

    parts: list[str] = field(default_factory=list)
    y: float = 20

    def box(
        self, x: float, y: float, kind: str, text: str, small: str = "", link: str = ""
    ) -> None:
        """A rectangle with a label and a smaller one under it."""
        green = " green" if kind == "piece" else ""
        made = (
            f'<rect class="{kind}" x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="6"/>'
            f'<text class="{green}" x="{x + BOX / 2}" y="{y + (15 if small else 21)}" '
            f'text-anchor="middle">{escape(text)}</text>'
            f'<text class="small" x="{x + BOX / 2}" y="{y + 28}" text-anchor="middle">'
            f"{escape(small)}</text>"
        )
        self.parts.append(f'<a href="#{escape(link)}">{made}</a>' if link else made)

    def line(self, *points: tuple[float, float], kind: str = "line") -> None:
        """A line through points."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Text at a place."""
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>')


@dataclass(frozen=True)
class Group:
    """Layers of one stack that look the same: drawn once."""

    stack: str
    layers: tuple[int, ...]
    places: dict[str, Any]  # by role, of the first layer
    inserted: dict[str, tuple[Planned, ...]]  # by role


def groups(plan: Plan) -> list[Group]:
    """The kinds of layers of a model under a plan, in order."""
    places: dict[tuple[str, int], dict[str, Any]] = {}
    for place in (*plan.sites.sites, *plan.sites.attentions):
        if place.layer is not None:
            places.setdefault((place.stack, place.layer), {}).setdefault(place.role, place)
    inserted: dict[tuple[str, int], dict[str, list[Planned]]] = {}
    for planned in plan.insertions:
        for place in planned.places:
            if place.layer is not None:
                roles = inserted.setdefault((place.stack, place.layer), {})
                known = roles.setdefault(place.role, [])
                if planned not in known:
                    known.append(planned)
    found: dict[Any, Group] = {}
    for (stack, layer), roles in sorted(places.items(), key=lambda p: (p[0][0] != "encoder", p[0])):
        mine = {r: tuple(p) for r, p in inserted.get((stack, layer), {}).items()}
        key = (stack, tuple(sorted(roles)), tuple((r, tuple(map(id, p))) for r, p in mine.items()))
        before = found.get(key)
        layers = (*before.layers, layer) if before else (layer,)
        found[key] = Group(stack, layers, before.places if before else roles, mine)
    return list(found.values())


def picture(plan: Plan) -> str:
    """The plan as one SVG picture."""
    drawing = Drawing()
    for embedding in plan.sites.embeddings:
        pieces = [p for p in plan.insertions if embedding.site in p.places]
        start(drawing, embedding.site, pieces)
    for group in groups(plan):
        draw(drawing, group)
    width = LEFT + 4 * (BOX + GAP) + 130
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {drawing.y + 20}" '
        f'width="{width}" role="img"><title>{escape(plan.spec.name)}</title>'
        f"<style>{STYLE}</style>{''.join(drawing.parts)}</svg>\n"
    )


def start(drawing: Drawing, site: Any, pieces: Sequence[Planned]) -> None:
    """The embedding at the top of a stream."""
    y = drawing.y
    drawing.box(60 - BOX / 2 + 8, y, "frozen", f"{site.stack} embed".strip(), str(site.width))
    for k, p in enumerate(pieces):
        x = LEFT + k * (BOX + 14)
        drawing.line((60 + BOX / 2 + 8, y + HIGH / 2), (x, y + HIGH / 2))
        drawing.box(x, y, "piece", p.insertion.id, p.insertion.delta.kind, p.insertion.id)
    drawing.y += HIGH + 14


def draw(drawing: Drawing, group: Group) -> None:
    """One kind of layer: the residual stream on the left, its blocks on the right."""
    top = drawing.y
    kinds = [k for k in STAGES if any(r.startswith(f"{k}.") for r in group.places)]
    count = len(group.layers)
    name = f"{group.stack} layer{'s' if count > 1 else ''} {spans(list(group.layers))}".strip()
    drawing.text(LEFT, top + 14, f"{name}, x{count}" if count > 1 else name, "title")
    drawing.y += 26
    first = len(drawing.parts)
    for kind in kinds:
        block(drawing, group, kind)
    after(drawing, group)
    drawing.line((68, top), (68, drawing.y), kind="line stream")
    drawing.parts.insert(first, drawing.parts.pop())  # behind the sums that stand on it


def block(drawing: Drawing, group: Group, kind: str) -> None:
    """One branch of the residual stream."""
    stages = [[p for p in stage if f"{kind}.{p}" in group.places] for stage in STAGES[kind]]
    stages = [s for s in stages if s]
    green = {r: p for r, p in group.inserted.items() if r.startswith(f"{kind}.")}
    rows = max(len(s) for s in stages)
    extra = max((len(p) for p in green.values()), default=0)
    high = 30 + rows * STEP + extra * STEP
    top, width = drawing.y, LEFT + 4 * (BOX + GAP) - GAP + 16
    drawing.parts.append(
        f'<rect class="block" x="{LEFT - 16}" y="{top}" width="{width - LEFT + 16}" '
        f'height="{high}" rx="10"/>'
    )
    drawing.text(LEFT - 4, top + 18, TITLES[kind], "small")
    middle = top + 30 + rows * STEP / 2 - 6
    drawing.line((68, top + 8), (LEFT - 40, top + 8), (LEFT - 40, middle), (LEFT, middle))
    x = LEFT
    for k, stage in enumerate(stages):
        for n, part in enumerate(stage):
            role = f"{kind}.{part}"
            y = middle - len(stage) * STEP / 2 + n * STEP + 6
            place = group.places[role]
            drawing.box(x, y, "frozen", LABELS.get(part, role), sizes(place))
            if k + 1 < len(stages):
                drawing.line((x + BOX, y + HIGH / 2), (x + BOX + GAP, middle))
        marked = [(r, p) for r in (f"{kind}.{part}" for part in stage) for p in green.get(r, ())]
        unique = list(dict.fromkeys(id(p) for _, p in marked))
        for n, identity in enumerate(unique):
            planned = next(p for _, p in marked if id(p) == identity)
            roles = [r.split(".")[1] for r, p in marked if p is planned]
            y = top + 30 + rows * STEP + n * STEP - 4
            bottom = middle + len(stage) * STEP / 2 - STEP + 6 + HIGH
            drawing.line((x + BOX / 2, y), (x + BOX / 2, bottom))
            label = f"{planned.insertion.delta.kind} at {', '.join(roles)}"
            drawing.box(x, y, "piece", planned.insertion.id, label, planned.insertion.id)
        x += BOX + GAP
    end = x - GAP
    drawing.line((end, middle), (width + 20, middle), (width + 20, top + high + 8),
                 (78, top + high + 8))  # fmt: skip
    drawing.parts.append(
        f'<circle cx="68" cy="{top + high + 8}" r="9" fill="#fff" stroke="#3b4656" '
        f'stroke-width="1.5"/><text x="68" y="{top + high + 13}" text-anchor="middle">+</text>'
    )
    drawing.y = top + high + 26


def after(drawing: Drawing, group: Group) -> None:
    """Pieces on the stream itself, behind the blocks."""
    for n, planned in enumerate(group.inserted.get("block.out", ())):
        y = drawing.y
        drawing.line((68, y + HIGH / 2), (LEFT + n * (BOX + 14), y + HIGH / 2))
        ident = planned.insertion.id
        drawing.box(LEFT + n * (BOX + 14), y, "piece", ident, planned.insertion.delta.kind, ident)
    if "block.out" in group.inserted:
        drawing.y += HIGH + 14


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>%(title)s</title><style>
body{font:15px/1.5 system-ui,sans-serif;color:#26303c;max-width:1000px;margin:32px auto;
padding:0 20px}h1{font-size:22px;margin:0}p{margin:6px 0 18px;color:#556070}
svg{max-width:100%%;height:auto;border:1px solid #e3e7ec;border-radius:12px}
section{border:1px solid #e3e7ec;border-left:5px solid #2f9e44;border-radius:8px;
padding:10px 16px;margin:14px 0}section:target{background:#f1fbf3;border-color:#2f9e44}
h2{font-size:16px;margin:2px 0}code,pre{font:13px ui-monospace,monospace}
pre{background:#f7f8fa;padding:10px;border-radius:6px;overflow:auto}
td,th{text-align:left;padding:2px 18px 2px 0;font-size:13px}th{color:#667080;font-weight:500}
</style><h1>%(title)s</h1><p>%(about)s</p>%(picture)s%(cards)s</html>
"""


def page(plan: Plan, model: str) -> str:
    """The plan as a page of its own: the picture, and a card for every insertion."""
    share = 100 * plan.trainable / (plan.base + plan.inserted)
    about = (
        f"{plan.sites.program.signature.model_class}, {plan.base:,} frozen parameters; "
        f"{plan.trainable:,} are trained ({share:.2f} %). Green is inserted: "
        "a click leads to its equation, its shapes and its lines in the spec."
    )
    cards = "".join(card(plan, k, p) for k, p in enumerate(plan.insertions))
    cards += "".join(map(head_card, plan.heads))
    values = {
        "title": escape(f"{plan.spec.name} on {model}"),
        "about": escape(about),
        "picture": picture(plan),
        "cards": cards,
    }
    return PAGE % values


def card(plan: Plan, k: int, planned: Planned) -> str:
    """One insertion: equation, places, and the lines of the spec it came from."""
    insertion = planned.insertion
    rows = "".join(
        f"<tr><td>{escape(role)}</td><td>{escape(spans(layers))}</td><td>{escape(path)}</td>"
        f"<td>{escape(size)}</td></tr>"
        for role, layers, path, size in by_role(planned)
    )
    return (
        f'<section id="{escape(insertion.id)}"><h2>{escape(insertion.id)}</h2>'
        f"<code>h &larr; {escape(insertion.formula)}</code> &nbsp; "
        f"{planned.parameters:,} parameters"
        f"<table><tr><th>site</th><th>layers</th><th>module</th><th>features</th></tr>{rows}"
        f"</table><pre>{escape(lines_of(plan, insertion.id))}</pre></section>"
    )


def head_card(head: PlannedHead) -> str:
    """The head of a task: equation, what it reads, and its labels."""
    name = escape(f"tasks.{head.task}")
    labels = f"; labels: {', '.join(head.options.names)}" if head.options.names else ""
    return (
        f'<section id="{name}"><h2>{name}</h2><code>{escape(head.options.formula)}</code> &nbsp; '
        f"{head.parameters:,} parameters<p>{escape(head.kind)} of {escape(head.source)}"
        f"{escape(labels)}</p></section>"
    )


def by_role(planned: Planned) -> Iterable[tuple[str, list[int], str, str]]:
    """(role, layers, module path, sizes) of an insertion's places."""
    roles: dict[str, list[Any]] = {}
    for place in planned.places:
        roles.setdefault(place.role, []).append(place)
    for role, places in roles.items():
        layers = sorted({p.layer for p in places if p.layer is not None})
        yield role, layers, where(places), sizes(places[0])


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
    return "\n".join([span.file, *numbered])
