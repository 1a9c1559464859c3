"""The frozen path: a rewritten graph with its insertions zeroed, against the graph before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftc.capture.inputs import example_value, sound_sizes
from peftc.capture.program import Program

SIZES = {"batch": 2, "sequence": 9, "decoder_sequence": 5}
SEEN = ("attend", "prepend")  # tokens that attention sees from the first step have no zero


def frozen_difference(before: Program, after: Program, plan: Mapping[str, Any]) -> float | None:
    """The largest |before - after| where every added delta is 0 and every factor is 1.

    `plan` is the plan as data. Both are run on the same inputs, one row padded. None where an insertion has no zero: a
    prefix or a prompt changes the outputs by being there.
    """
    kinds = {i["id"]: i["compose"] for i in plan["insertions"]}
    if any(kind in SEEN for kind in kinds.values()):
        return None
    graph = after.clone(pieces=True).eval()
    hooks = [
        module.register_forward_hook(neutral(kinds[name.split(".")[1]], name.endswith("_gate")))
        for name, module in graph.named_modules()
        if name.startswith("peft.") and name.count(".") == 2
    ]
    config = before.signature.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes, vocabulary = sound_sizes(SIZES, config), getattr(text, "vocab_size", 2) or 2
    device = next(before.parameters()).device
    values = [example_value(i, sizes, vocabulary).to(device) for i in before.signature.inputs]
    with torch.no_grad():
        pairs = zip(before.flat(*values), graph.flat(*values), strict=True)
        found = [difference(a, b) for a, b in pairs]
    for hook in hooks:
        hook.remove()
    return max(found, default=0.0)


def neutral(kind: str, gate: bool) -> Any:
    """A hook that makes a piece's output change nothing."""
    if gate:
        return lambda module, inputs, output: inputs[0]
    fill = torch.ones_like if kind == "multiply" else torch.zeros_like
    return lambda module, inputs, output: fill(output)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest |a - b|; infinite where only one of them is a number."""
    if a.shape != b.shape:
        return float("inf")
    if torch.equal(a.nan_to_num(), b.nan_to_num()):
        return 0.0
    return (a.double() - b.double()).abs().nan_to_num(float("inf")).max().item()
