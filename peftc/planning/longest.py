"""The longest text that is left to a user: rows of position tables, less what stands in front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftc.dataflow.limits import most_tokens
from peftc.dataflow.site import Sites
from peftc.ground.diagnostics import Diagnostic
from peftc.planning.plan import Planned
from peftc.spec import Spec


@dataclass
class Shift:
    """How far positions move: tokens by task (one where tasks share), and who moves them."""

    tokens: list[int]
    insertion: str


def shifts_of(
    insertions: Sequence[Planned], tasks: Sequence[str]
) -> dict[tuple[str, int | None], Shift]:
    """By stack and the token it stands before: the shift of positions that prefixes ask for.

    It is as many positions as one self-attention has shifting prefix tokens.
    """
    counts: dict[tuple[str, int | None], dict[str, list[int]]] = {}
    first: dict[tuple[str, int | None], str] = {}
    for planned in insertions:
        options = planned.insertion.delta.options
        if planned.insertion.composition.kind != "attend" or options.positions != "shift":
            continue
        own = planned.insertion.variants(tasks)
        tokens = [own.get(t, planned.insertion).delta.options.tokens for t in tasks or ("",)]
        for place in planned.places:
            if place.role == "attn.kv":
                key = (place.stack, options.before)
                there = counts.setdefault(key, {})
                before = there.get(place.name, [0] * len(tokens))
                there[place.name] = [a + b for a, b in zip(before, tokens, strict=True)]
                first.setdefault(key, planned.insertion.id)
    return {
        key: Shift([max(sizes) for sizes in zip(*there.values(), strict=True)], first[key])
        for key, there in counts.items()
    }


def tokens_in_front(insertions: Sequence[Planned], tasks: Sequence[str]) -> Counter[str]:
    """By stack, the positions that prompts and shifting prefixes take from the text."""
    found: Counter[str] = Counter()
    for (stack, _), shift in shifts_of(insertions, tasks).items():
        found[stack] += max(shift.tokens)
    for planned in insertions:
        if planned.insertion.composition.kind == "prepend":
            for place in planned.places:
                found[place.stack] += planned.insertion.delta.options.tokens
    return found


def longest_text(
    spec: Spec,
    insertions: Sequence[Planned],
    tasks: Sequence[str],
    sites: Sites,
    problems: list[Diagnostic],
) -> dict[str, int]:
    """The most tokens that each free axis of the inputs may have, where position tables end.

    A model that computes its positions has no limit, and no entry. E121 is added to `problems`
    where no token is left, or fewer than the length that the graph is captured for.
    """
    found: dict[str, int] = {}
    front = tokens_in_front(insertions, tasks)
    for stack, rows in most_tokens(sites).items():
        axis, left = axis_of(stack, sites), rows - front[stack]
        needed = axis if isinstance(axis, int) else 1
        if front[stack] and left < needed:
            problems.append(no_room(spec, insertions, stack, rows, front[stack], axis))
        elif isinstance(axis, str):
            found[axis] = min(left, found.get(axis, left))
    return found


def axis_of(stack: str, sites: Sites) -> int | str:
    """The length of a stack's ids, as the signature has it; of ids made inside, the text's."""
    signature = sites.program.signature
    embedding = next(e for e in sites.embeddings if e.site.stack == stack)
    return (signature.input(embedding.ids.name) or signature.inputs[0]).dims[1]


def no_room(
    spec: Spec,
    insertions: Sequence[Planned],
    stack: str,
    rows: int,
    front: int,
    axis: int | str,
) -> Diagnostic:
    """E121: what stands in front of the text leaves it no room."""
    ids = [
        p.insertion.id
        for p in insertions
        if p.insertion.composition.kind in ("prepend", "attend")
        and any(place.stack == stack for place in p.places)
    ]
    k = [i.id for i in spec.insert].index(ids[0])
    kind = spec.insert[k].delta.kind
    of = f"the {stack} of {spec.name}" if stack else spec.name
    text = f"texts of {axis} tokens" if isinstance(axis, int) else "any text"
    return Diagnostic(
        "E121",
        f"{of} leaves no room for {text}",
        spec.span("insert", k, "delta", kind, "tokens"),
        f"{front} positions of {rows}",
        help=(f"fewer `tokens`, of {', '.join(f'`{n}`' for n in ids)}",),
    )


def said(longest: Mapping[str, int]) -> str:
    """The limits in words: "44 tokens, 60 for the decoder"."""
    return ", ".join(
        f"{n} for the decoder" if axis.startswith("decoder") else f"{n} tokens"
        for axis, n in longest.items()
    )
