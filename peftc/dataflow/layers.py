"""Which layer of its stack each block belongs to, from the order and the kinds of the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What stands side by side in a stack: blocks that start from one value of the stream.

    `kinds` are those of its blocks: "attn", "cross", "mixer", "ffn". `place` is the numbered
    module of the block that mixes tokens, where there is one.
    """

    kinds: tuple[str, ...]
    place: str = ""


def layers_of(steps: Sequence[Step]) -> list[int]:
    """The layer of each step of one stack.

    A layer has one step that mixes the stack's own tokens: attention, or a mixer, which may stand
    in front of the attention of the same place; else it has one that attends to another stack.
    Where no step does, each feed-forward is a layer. Steps before
    the first layer's attention belong to that layer, and so do as many before every other one if
    the stack is a repetition of them: the first of two feed-forward blocks around attention.
    """
    begins = beginnings(steps)
    period = begins[1] - begins[0] if len(begins) > 1 else 0
    lead = begins[0] if begins else 0
    if period and period * len(begins) == len(steps) and lead < period:
        kinds = [sorted(s.kinds) for s in steps]
        if all(kinds[k] == kinds[k % period] for k in range(len(steps))):
            return [k // period for k in range(len(steps))]
    return [max(sum(b <= k for b in begins) - 1, 0) for k in range(len(steps))]


def beginnings(steps: Sequence[Step]) -> list[int]:
    """The first steps of their layers that mix tokens; feed-forwards where nothing mixes."""
    found: list[int] = []
    begun: tuple[str, bool] | None = None  # where the layer began, and whether with a mixer
    for k, step in enumerate(steps):
        if "attn" in step.kinds:
            if begun != (step.place, True):
                found.append(k)
            begun = (step.place, False)
        elif "mixer" in step.kinds and (begun is None or begun[0] != (step.place or None)):
            found.append(k)
            begun = (step.place, True)
    of = {kind: [k for k, s in enumerate(steps) if kind in s.kinds] for kind in ("cross", "ffn")}
    return found or of["cross"] or of["ffn"]
