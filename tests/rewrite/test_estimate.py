"""Estimates of a plan against what it takes and leaves."""

from __future__ import annotations

import pytest
import task_specs
import torch
import zoo

import peftc
from peftc.rewrite.estimate import activations, after_fold, needs, short
from peftc.rewrite.merging import foreseen, wanted
from peftc.rewrite.pipeline import fold


def said(spec, kind="bert"):
    plan = peftc.plan(spec, zoo.captured(kind))
    return after_fold(plan, foreseen(plan))


@pytest.mark.parametrize("kind", ["bert", "llama"])  # llama repeats keys and values over heads
@pytest.mark.parametrize("spec", ["prefix", "ptuning", "unipelt", "combined"])
def test_what_a_plan_says_is_kept_is_what_folding_leaves(spec, kind):
    plan = peftc.plan(spec, zoo.captured(kind))
    folded = fold(peftc.apply(spec, zoo.captured(kind)), merge=wanted(plan.spec))[0]
    found = foreseen(plan)
    assert {o.id for o in found} == {i.id for i in plan.spec.insert}
    for o in found:
        left = sum(
            p.numel()
            for n, p in (*folded.named_parameters(), *folded.named_buffers())
            if n.startswith(f"peft.{o.id}.") and "_gate" not in n
        )
        assert left == o.kept, o.id
        assert o.merged == (left == 0)


def test_what_goes_is_said_where_it_goes():
    assert said("lora") == ["qv merged (-2.3k)"]
    kept = {**peftc.load_spec("lora").to_dict(), "export": {"fold": "none"}}
    assert said(kept) == []
    assert said("houlsby") == []
    assert said("ptuning")[0].startswith("480 prompt values kept, encoder dropped (-")
    assert "prefix values kept, MLP dropped (-" in said("prefix")[0]
    per_task = task_specs.LORA
    assert said(per_task) == []  # a bank serves them all
    tied = {"low_rank": {"rank": 2}}
    head = [{"id": "e", "at": ["embed.out", "attn.q"], "delta": tied}]
    plan = peftc.plan({"peftc": 1, "name": "n", "insert": head}, zoo.captured("gpt2", "causal-lm"))
    assert after_fold(plan, foreseen(plan)) == ["e merged at 3 of 4 sites"]


@pytest.mark.parametrize("spec", ["houlsby", "lora"])
def test_activations_are_near_what_a_backward_pass_keeps(spec):
    model = zoo.model("bert")
    graph = peftc.apply(spec, zoo.captured("bert")).eval()  # as on a GPU: fused attention
    frozen = {p.data_ptr() for p in graph.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), keep(t))[1], keep):
        next(iter(graph(**zoo.inputs(model, 16, 60)).values())).sum()
    plan = peftc.plan(spec, zoo.captured("bert"))
    assert 0.5 < activations(plan, 16, 60) / sum(kept.values()) < 2
    assert needs(plan)["training"] > activations(plan)


def test_counts_for_people():
    assert [short(n) for n in (512, 9_200, 14_800_000, 8_030_261_248)] == [
        "512", "9.2k", "14.8M", "8.0B",
    ]  # fmt: skip
