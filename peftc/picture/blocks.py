"""The picture of a model: every kind of layer once, the residual stream on its left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftc.dataflow.report import sizes, spans
from peftc.dataflow.site import Sites
from peftc.picture.drawing import BOX, HIGH, Drawing
from peftc.planning.plan import Plan, Planned

STAGES = {
    "attn": (("q", "k", "v"), ("kv",), ("heads",), ("out",)),
    "cross": (("q", "k", "v"), ("kv",), ("heads",), ("out",)),
    "ffn": (("gate", "up"), ("act",), ("down",), ("out",)),
    "mixer": (("out",),),
}
TITLES = {"attn": "self-attention", "cross": "cross-attention", "ffn": "feed-forward",
          "mixer": "mixer"}  # fmt: skip
LABELS = {"kv": "softmax(q k) v", "heads": "heads", "act": "act"}
GAP, LEFT, STEP, STREAM = 38, 156, 46, 78
WIDTH = LEFT + 4 * (BOX + GAP) + 60
LETTER = 6.8  # the width of a monospaced letter of a piece's formula


@dataclass(frozen=True)
class Group:
    """Layers of one stack that look the same: drawn once."""

    stack: str
    layers: tuple[int, ...]
    places: dict[str, Any]  # by role, of the first layer
    inserted: dict[str, tuple[Planned, ...]]  # by role


def groups(sites: Sites, insertions: Sequence[Planned]) -> list[Group]:
    """The kinds of layers of a model under a plan, in order."""
    places: dict[tuple[str, int], dict[str, Any]] = {}
    for place in (*sites.sites, *sites.attentions):
        if place.layer is not None:
            places.setdefault((place.stack, place.layer), {}).setdefault(place.role, place)
    inserted: dict[tuple[str, int], dict[str, list[Planned]]] = {}
    for planned in insertions:
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
    return drawn(plan.sites, plan.insertions, plan.spec.name, plan.unfrozen)


def drawn(
    sites: Sites, insertions: Sequence[Planned], title: str, unfrozen: Sequence[str] = ()
) -> str:
    """A model's sites with what is inserted at them, and its head, as one SVG picture."""
    drawing = Drawing()
    found = groups(sites, insertions)
    stacks = list(dict.fromkeys(g.stack for g in found))
    for k, stack in enumerate(stacks):
        top = drawing.y
        for first in (s for s in sites.starts if s.stack == stack):
            start(drawing, first, [p for p in insertions if first in p.places])
        for group in (g for g in found if g.stack == stack):
            draw(drawing, group, unfrozen)
        heads = [n for n in sites.parameters.get("head", ()) if n.endswith("weight")]
        bottom = drawing.y
        if k + 1 == len(stacks) and heads:
            end(drawing, sites, heads, unfrozen)
            bottom = drawing.y - HIGH
        drawing.under.insert(
            0, f'<line class="stream" x1="{STREAM}" x2="{STREAM}" y1="{top + HIGH}" y2="{bottom}"/>'
        )
        drawing.y += 26
    return drawing.svg(WIDTH, title)


def start(drawing: Drawing, site: Any, pieces: Sequence[Planned]) -> None:
    """The embedding at the top of a stream."""
    y = drawing.y
    name = f"{site.stack} embed".strip()
    kind = "touched" if pieces else "frozen"
    drawing.box(STREAM - BOX / 2, y, kind, name, str(site.width), "site-embed.out", site.module)
    x = LEFT + 20
    for p in pieces:
        width = wide(p)
        drawing.line((STREAM + BOX / 2, y + HIGH / 2), (x, y + HIGH / 2), kind="wire")
        strip(drawing, x, y, p, width)
        x += width + 14
    drawing.y += HIGH + 14


def end(drawing: Drawing, sites: Sites, names: Sequence[str], unfrozen: Sequence[str]) -> None:
    """The head at the bottom of the last stream."""
    name = names[-1]
    shape = tuple(dict(sites.program.named_parameters())[name].shape)
    kind = "trained" if name in unfrozen else "frozen"
    small = f"{shape[1]} > {shape[0]}" if len(shape) == 2 else ""
    module = name.rpartition(".")[0]
    drawing.y += 12
    drawing.box(STREAM - BOX / 2, drawing.y, kind, "head", small, "site-head", module)
    drawing.y += HIGH


def wide(planned: Planned) -> float:
    """The width of an insertion's box: its formula fits."""
    text = max(len(planned.insertion.formula), len(planned.insertion.id))
    return max(BOX, round(text * LETTER) + 24)


def strip(drawing: Drawing, x: float, y: float, planned: Planned, width: float) -> None:
    """An insertion: its name and its formula."""
    insertion = planned.insertion
    tip = f"{insertion.delta.kind}: h <- {insertion.formula}, {planned.parameters:,} parameters"
    drawing.box(x, y, "piece", insertion.id, insertion.formula, insertion.id, tip, width)


def draw(drawing: Drawing, group: Group, unfrozen: Sequence[str]) -> None:
    """One kind of layer: its branches, each back to the stream."""
    kinds = [k for k in STAGES if any(r.startswith(f"{k}.") for r in group.places)]
    count = len(group.layers)
    name = f"{group.stack} layer{'s' if count > 1 else ''} {spans(list(group.layers))}".strip()
    drawing.text(LEFT - 16, drawing.y + 16, f"{name}   \u00d7{count}" if count > 1 else name,
                 "title")  # fmt: skip
    drawing.y += 28
    for kind in kinds:
        branch(drawing, group, kind, unfrozen)
    for planned in group.inserted.get("block.out", ()):
        y = drawing.y
        drawing.line((STREAM, y + HIGH / 2), (LEFT - 16, y + HIGH / 2), kind="wire")
        drawing.dot(STREAM, y + HIGH / 2)
        strip(drawing, LEFT - 16, y, planned, wide(planned))
        drawing.y += HIGH + 14


def branch(drawing: Drawing, group: Group, kind: str, unfrozen: Sequence[str]) -> None:
    """One branch of the residual stream: frozen boxes in a row, insertions below them."""
    stages = [[p for p in stage if f"{kind}.{p}" in group.places] for stage in STAGES[kind]]
    stages = [s for s in stages if s]
    green = {r: p for r, p in group.inserted.items() if r.startswith(f"{kind}.")}
    pieces = list({id(p): p for role in green.values() for p in role}.values())
    rows = max(len(s) for s in stages)
    top, right = drawing.y, LEFT + 4 * (BOX + GAP) - GAP + 16
    high = 30 + rows * STEP + (len(pieces) * (HIGH + 10) + 8 if pieces else 0)
    drawing.panel(LEFT - 16, top, right - LEFT + 16, high)
    drawing.text(LEFT - 4, top + 19, TITLES[kind], "small")
    middle = top + 28 + rows * STEP / 2
    corners: dict[str, tuple[float, float]] = {}
    for k, stage in enumerate(stages):
        x = LEFT + k * (BOX + GAP)
        for n, part in enumerate(stage):
            role, y = f"{kind}.{part}", middle - len(stage) * STEP / 2 + n * STEP + 5
            place = group.places[role]
            corners[role] = (x, y)
            own = place.weight.name if getattr(place, "weight", None) is not None else None
            look = "trained" if own in unfrozen else "touched" if role in green else "frozen"
            tip = f"{place.module}   {sizes(place)}"
            drawing.box(x, y, look, LABELS.get(part, role), sizes(place), f"site-{role}", tip)
            if k == 0:
                drawing.line((LEFT - 40, y + HIGH / 2), (x, y + HIGH / 2), arrow=True)
            if k + 1 < len(stages):
                to = middle - STEP / 2 + 5 + HIGH / 2 if len(stages[k + 1]) == 1 else y + HIGH / 2
                drawing.line((x + BOX, y + HIGH / 2), (x + BOX + GAP, to), arrow=True)
    inlets = [corners[f"{kind}.{p}"][1] + HIGH / 2 for p in stages[0]]
    own = 1 if kind == "cross" and len(inlets) > 1 else len(inlets)  # k and v read the encoder
    drawing.line((STREAM, top + 6), (LEFT - 40, top + 6), (LEFT - 40, inlets[own - 1]))
    if own < len(inlets):
        drawing.line((LEFT - 40, inlets[own]), (LEFT - 40, inlets[-1]))
        drawing.text(LEFT + 106, top + 19, "k and v read the encoder's output", "small")
    wired(drawing, kind, green, pieces, corners, top + 36 + rows * STEP)
    x, y = LEFT + len(stages) * (BOX + GAP) - GAP, middle - STEP / 2 + 5 + HIGH / 2
    back, bottom = right + 18, top + high + 10
    drawing.line((x, y), (back, y), (back, bottom), (STREAM + 9, bottom), arrow=True)
    drawing.sum(STREAM, bottom)
    drawing.y = bottom + 20


def wired(
    drawing: Drawing,
    kind: str,
    green: dict[str, tuple[Planned, ...]],
    pieces: Sequence[Planned],
    corners: dict[str, tuple[float, float]],
    y: float,
) -> None:
    """The insertions of a branch, one below the other, wired to the boxes that they change."""
    first = [f"{kind}.{p}" for p in STAGES[kind][0]]
    for n, planned in enumerate(pieces):
        roles = [r for r in corners if planned in green.get(r, ())]
        width, row = wide(planned), y + n * (HIGH + 10)
        most = LEFT + 4 * (BOX + GAP) - GAP - width
        x = max(LEFT, min(corners[roles[0]][0] + BOX / 2 - width / 2, most))
        lane = LEFT - 8 + 3 * n
        for role in roles:
            bx, by = corners[role]
            if role in first and len(first) > 1:
                drawing.line((x, row + HIGH / 2), (lane, row + HIGH / 2), (lane, by + HIGH - 8),
                             (bx, by + HIGH - 8), kind="wire")  # fmt: skip
                drawing.dot(bx, by + HIGH - 8)
            else:
                at = bx + BOX / 2 + 8 * n
                drawing.line((at, row), (at, by + HIGH), kind="wire")
                drawing.dot(at, by + HIGH)
        strip(drawing, x, row, planned, width)
