"""Estimates of a plan against what it takes and leaves."""

from __future__ import annotations

import pytest
import torch
import zoo

import peftc
from peftc.estimate import activations, after_fold, kept_values, needs, short
from peftc.pipeline import fold


@pytest.mark.parametrize("spec", ["prefix", "ptuning", "unipelt"])
def test_what_is_kept_without_the_mlp_is_what_folding_leaves(spec):
    plan = peftc.plan(spec, zoo.captured("bert"))
    kept = {p.insertion.id: kept_values(p) for p in plan.insertions}
    folded = fold(peftc.apply(spec, zoo.captured("bert")))[0]
    for ident, count in kept.items():
        if count is not None:
            left = sum(
                p.numel()
                for n, p in (*folded.named_parameters(), *folded.named_buffers())
                if n.startswith(f"peft.{ident}.") and "_gate" not in n
            )
            assert left == count, ident


def test_merged_insertions_are_said_only_where_they_fold():
    assert after_fold(peftc.plan("lora", zoo.captured("bert"))) == ["qv merged (-2.3k)"]
    kept = {**peftc.load_spec("lora").to_dict(), "export": {"fold": "none"}}
    assert after_fold(peftc.plan(kept, zoo.captured("bert"))) == []
    assert after_fold(peftc.plan("houlsby", zoo.captured("bert"))) == []


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
