"""The frozen path: pieces of any weights, zeroed, leave the model's own outputs bit for bit."""

from __future__ import annotations

import pytest
import torch
import zoo

import peftc
from peftc.rewrite.zeroed_check import frozen_difference

PIPE = {
    "peftc": 1, "name": "gated", "insert": [{
        "id": "a", "at": "block.out", "compose": {"gate": {"init": 0.3}},
        "delta": {"pipe": [{"linear": {"out": 5}}, {"act": "gelu"}, {"linear": {"out": "same"}}]},
    }],
}  # fmt: skip
FUSED = {
    "peftc": 1, "name": "fused", "insert": [{
        "id": "a", "at": "attn.k", "delta": {"bottleneck": {"dim": 5}},
        "compose": {"gate": {"init": 0.3, "per": "channel", "reads": "x"}},
    }],
}  # fmt: skip


def randomised(graph):
    """The graph with random pieces; its applied record."""
    generator = torch.Generator().manual_seed(4)
    for _, p in graph.peft_parameters():
        p.data.add_(torch.randn(p.shape, generator=generator))
    return graph, graph.meta["peftc.applied"]


@pytest.mark.parametrize(
    ("spec", "kind", "task"),
    [
        ("houlsby", "bert", "base"),
        ("lora", "gpt2", "causal-lm"),
        ("dora", "llama", "causal-lm"),
        ("ia3", "t5", "seq2seq-lm"),
        (PIPE, "bert", "base"),
        (FUSED, "gpt2", "causal-lm"),
    ],
)
def test_zeroed_pieces_leave_the_model(spec, kind, task):
    graph, applied = randomised(peftc.apply(spec, zoo.captured(kind, task)))
    given = zoo.inputs(zoo.model(kind, task))
    with torch.no_grad():
        before, after = (next(iter(p(**given).values())) for p in (applied.base, graph))
    assert not torch.equal(before, after)
    assert frozen_difference(applied.base, graph, applied.plan) == 0.0
    with torch.no_grad():  # it left the graph as it was
        assert torch.equal(next(iter(graph(**given).values())), after)


def test_a_frozen_path_that_changed_is_seen():
    graph, applied = randomised(peftc.apply("lora", zoo.captured("bert")))
    reader = next(n for n in graph.graph.nodes if str(n.target) == "aten.gelu.default")
    reader.target = torch.ops.aten.relu.default
    graph.recompile()
    found = frozen_difference(applied.base, graph, applied.plan)
    assert found is not None
    assert found > 1e-3


@pytest.mark.parametrize("spec", ["prompt", "prefix", "mam"])
def test_tokens_that_are_seen_have_no_zero(spec):
    graph, applied = randomised(peftc.apply(spec, zoo.captured("bert")))
    assert frozen_difference(applied.base, graph, applied.plan) is None


LIKE_PARTS = ("x_gate", "gate", "reparam", "mask", "tasks")


@pytest.mark.parametrize("gated", [False, True])
def test_names_that_look_like_parts_change_nothing(gated):
    """Ids like parts, the role ffn.gate, and modules whose paths give one name or a gate's."""
    made = zoo.model("llama", "causal-lm")
    places = ["ffn.gate", {"module": "model.layers.*.mlp.gate_proj"}, {"module": "*.mlp"}]
    compose = {"compose": {"gate": {"init": 0.3}}} if gated else {}
    insert = [
        {"id": i, "at": places, "delta": {"bottleneck": {"dim": 2}}, **compose} for i in LIKE_PARTS
    ]
    graph, applied = randomised(peftc.apply({"peftc": 1, "name": "n", "insert": insert}, made))
    assert frozen_difference(applied.base, graph, applied.plan) == 0.0
    for i in LIKE_PARTS:
        mine = [n for n, _ in graph.peft_parameters() if n.startswith(f"peft.{i}.")]
        assert len(mine) == 3 * 3 * (5 if gated else 4)
