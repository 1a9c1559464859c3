"""The frozen path: a rewritten graph with its insertions zeroed, against the graph before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftc.capture.inputs import example_value, sound_sizes, vocabulary_of
from peftc.capture.piece_name import Part, piece_name
from peftc.capture.program import Program

SIZES = {"batch": 2, "sequence": 9, "decoder_sequence": 5}
SEEN = ("attend", "prepend")  # tokens that are seen from the first step have no zero


def frozen_difference(before: Program, after: Program, plan: Mapping[str, Any]) -> float | None:
    """The largest |before - after| where every delta of `after` is 0 and every factor is 1.

    `plan` is the plan as data. Both run on the same inputs, one row padded. None where an
    insertion has no zero: a prefix or a prompt changes the outputs by being there, and the heads
    of tasks are other outputs.
    """
    if after.signature.tasks:
        return None
    kinds = {i["id"]: i["compose"] for i in plan["insertions"]}
    graph = after.clone(pieces=True).eval()
    called = [piece_name(n.target) for n in graph.graph.find_nodes(op="call_module")]
    names = dict.fromkeys(name for name in called if name is not None)
    if any(kinds.get(name.insertion, "attend") in SEEN for name in names):
        return None
    for name in names:
        piece = graph.get_submodule(str(name))
        gate = name.part is Part.GATE
        piece.register_forward_hook(neutral(kinds[name.insertion], gate=gate))
    config = before.signature.config
    sizes, vocabulary = sound_sizes(SIZES, config), vocabulary_of(config)
    device = next(before.parameters()).device
    values = [example_value(i, sizes, vocabulary).to(device) for i in before.signature.inputs]
    with torch.no_grad():
        pairs = zip(before.flat(*values), graph.flat(*values), strict=True)
        return max((difference(a, b) for a, b in pairs), default=0.0)


def neutral(compose: str, *, gate: bool) -> Any:
    """A hook that makes a piece's output change nothing."""
    if gate:  # of h and the delta h stays; a delta behind a gate is zero already
        return lambda module, inputs, output: inputs[0]
    fill = torch.ones_like if compose == "multiply" else torch.zeros_like
    return lambda module, inputs, output: fill(output)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest |a - b|; infinite for other shapes, or where only one of them is a number."""
    if a.shape != b.shape:
        return math.inf
    apart = (a.double() - b.double()).abs()
    apart = apart[~((a == b) | (a.isnan() & b.isnan()))]
    return apart.nan_to_num(math.inf).max().item() if apart.numel() else 0.0
