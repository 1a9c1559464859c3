"""Models that no library has: every kind of insertion is right against hooks."""

from __future__ import annotations

import functools
from contextlib import ExitStack

import own_models
import pytest
import torch
from tolerances import PARITY

import peftc
from peftc.capture import capture
from peftc.dataflow import find_sites

SHAPES = ((2, 13), (3, 6))
ROLES = ("attn.q", "attn.k", "attn.v", "attn.out", "ffn.act", "ffn.down", "ffn.out")
SPECS = {
    "bottleneck": {"attn.out": {"bottleneck": {"dim": 5}}, "ffn.out": {"bottleneck": {"dim": 5}}},
    "low_rank": {r: {"low_rank": {"rank": 3}} for r in ("attn.q", "attn.k", "attn.v")},
    "vector": {"attn.k": "vector", "attn.v": "vector", "ffn.act": "vector"},
    "prefix": {"attn.kv": {"prefix": {"tokens": 4, "positions": "keep"}}},
    "prompt": {"embed.out": {"prompt": {"tokens": 4}}},
}


@functools.cache
def captured(kind):
    """The model and its graph, captured once."""
    model = own_models.OwnModel(own_models.OwnConfig(kind)).eval()
    return model, capture(model)


def inputs(batch, length):
    """Ids and a mask, every row but the first padded."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(3, own_models.VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def changed(piece):
    """A piece's formula, from its tensors alone: (h, x) -> h."""
    w = {n: p.detach() for n, p in piece.named_parameters()}
    if "A" in w:
        return lambda h, x: h + x @ w["A"].T @ w["B"].T
    if "l" in w:
        return lambda h, x: h * w["l"]
    return lambda h, x: (
        h + torch.relu(h @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
    )


def tap_of(block, role):
    """The tap of a role in a block."""
    name = role.replace(".", "_")
    if name in ("attn_out", "ffn_out"):
        return getattr(block, name)
    return block.feed_forward.act if role == "ffn.act" else getattr(block.attention, role[-1])


def expected(model, graph, given):
    """What the plain model gives with the graph's pieces hooked into it."""
    planned = graph.meta["peftc.applied"].plan["insertions"]
    places = [
        (site, graph.get_submodule(f"peft.{p['id']}.{site['name']}"))
        for p in planned
        for site in p["sites"]
    ]
    with ExitStack() as undo, torch.no_grad():
        for site, piece in places:
            if site["role"] == "embed.out":
                rows = piece.embedding.expand(len(given["input_ids"]), -1, -1)
                embeds = torch.cat([rows, model.words(given["input_ids"])], 1)
                mask = torch.cat([torch.ones(rows.shape[:2]), given["attention_mask"]], 1)
                return model(inputs_embeds=embeds, attention_mask=mask).logits[:, rows.shape[1] :]
            block = model.blocks[site["layer"]]
            if site["role"] == "attn.kv":
                block.attention.prefix = (piece.key.detach(), piece.value.detach())
                undo.callback(setattr, block.attention, "prefix", None)
                continue
            change = changed(piece)
            hook = tap_of(block, site["role"]).register_forward_hook(
                lambda _module, args, h, change=change: change(h, args[1])
            )
            undo.callback(hook.remove)
        return model(**given).logits


@pytest.mark.parametrize("kind", own_models.KINDS)
def test_every_role_is_found_in_every_layer(kind):
    model, program = captured(kind)
    sites = find_sites(program.clone())
    for role in ROLES:
        assert [s.layer for s in sites.sites if s.role == role] == [0, 1], role
    attention = model.blocks[0].attention
    sizes = [(a.heads, a.kv_heads, a.head_dim, a.value_dim) for a in sites.attentions]
    assert {a.tiled for a in sites.attentions} == {attention.tiled}
    assert sizes == [(own_models.HEADS, attention.kv_heads, own_models.DIM, own_models.DIM)] * 2


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("kind", own_models.KINDS)
def test_an_insertion_is_what_hooks_make_of_the_model(kind, method):
    model, program = captured(kind)
    insert = [
        {"id": at.replace(".", "_"), "at": at, "delta": delta}
        for at, delta in SPECS[method].items()
    ]
    graph = peftc.apply({"peftc": 1, "name": method, "insert": insert}, program)
    pieces = dict(graph.peft_parameters())
    if method in ("bottleneck", "low_rank", "vector"):
        given = inputs(*SHAPES[0])
        with torch.no_grad():
            assert torch.equal(graph(**given)["logits"], model(**given).logits)
    generator = torch.Generator().manual_seed(3)
    for p in pieces.values():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    for shape in SHAPES:
        given = inputs(*shape)
        found, wanted = graph(**given)["logits"], expected(model, graph, given)
        real = given["attention_mask"][..., None]
        assert ((found - model(**given).logits) * real).abs().max() > 1e-3
        scale = max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(
            found * real / scale, wanted * real / scale, **PARITY[torch.float32]
        )
    found.square().mean().backward()
    assert [n for n, p in pieces.items() if p.grad is None or not p.grad.any()] == []
