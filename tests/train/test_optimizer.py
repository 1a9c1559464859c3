"""Parameters in half precision are updated in float32: small steps add up."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn

import peftc
from peftc.train import Rows, train
from peftc.train.optimizer import MasterAdamW

OPTIONS = {"lr": 1e-4, "weight_decay": 0.0}


def trained(optimizer, parameters, steps=60, seed=0):
    """Steps with gradients that mostly point one way."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (1 + 0.3 * noise).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in parameters)


def some(dtype):
    """Weights around one, where the spacing of bfloat16 is 2^-8 and more."""
    generator = torch.Generator().manual_seed(1)
    values = [1 + 0.2 * torch.randn(size, generator=generator) for size in ((3, 5), (7,))]
    return [nn.Parameter(v.to(torch.bfloat16).to(dtype)) for v in values]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_below_the_spacing_add_up_as_in_float32(dtype):
    half, full, lost = some(dtype), some(torch.float32), some(dtype)
    start = copy.deepcopy(half)
    trained(MasterAdamW(half, **OPTIONS), half)
    plain = torch.optim.AdamW(full, **OPTIONS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        for parameter in full:  # of the same rounded gradients
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (1 + 0.3 * noise).to(dtype).float()
        plain.step()
    trained(torch.optim.AdamW(lost, **OPTIONS), lost)
    for h, f in zip(half, full, strict=True):
        assert torch.equal(h, f.to(dtype))
    if dtype == torch.bfloat16:
        assert all(torch.equal(a, b) for a, b in zip(lost, start, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(half, start, strict=True))


def test_parameters_in_float32_are_those_of_adamw():
    ours, theirs = some(torch.float32), some(torch.float32)
    trained(MasterAdamW(ours, **OPTIONS), ours)
    trained(torch.optim.AdamW(theirs, **OPTIONS), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_state_goes_on_from_before_rounding():
    whole, half = some(torch.bfloat16), some(torch.bfloat16)
    optimizer = MasterAdamW(whole, **OPTIONS)
    trained(optimizer, whole, seed=1)
    trained(optimizer, whole, seed=2)
    first = MasterAdamW(half, **OPTIONS)
    trained(first, half, seed=1)
    again = [nn.Parameter(p.detach().clone()) for p in half]
    second = MasterAdamW(again, **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    trained(second, again, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_closure_gives_the_loss():
    (weight, _) = some(torch.bfloat16)
    optimizer = MasterAdamW([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_a_model_in_half_precision_learns_by_small_steps():
    """Each step is less than half of what bfloat16 tells apart at the size of the pieces."""
    model = zoo.build("bert", "sequence-classification", layers=1).bfloat16()
    graph = peftc.apply("houlsby", model, set={"dim": 5})
    with torch.no_grad():
        for _, parameter in graph.peft_parameters():
            parameter.add_(0.5)
    before = {n: p.detach().clone() for n, p in graph.named_parameters()}
    rows = Rows(
        [
            {"input_ids": [4 + k, 7, 9 + k], "attention_mask": [1, 1, 1], "labels": k % 5}
            for k in range(12)
        ]
    )
    train(graph, rows, pad=0, steps=60, batch=4, lr=2e-4)
    after = {n: p.detach() for n, p in graph.named_parameters()}
    assert {p.dtype for p in after.values()} == {torch.bfloat16}
    frozen = before.keys() - peftc.trainable(graph).keys()
    assert all(torch.equal(after[n], before[n]) for n in frozen)
    pieces = [n for n, _ in graph.peft_parameters()]
    moved = torch.cat([(after[n] != before[n]).flatten() for n in pieces]).float().mean()
    assert moved > 0.3  # AdamW over the rounded ones moves none
