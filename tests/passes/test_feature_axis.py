"""Pieces work along the axis on which a value's features stand, wherever that is."""

from __future__ import annotations

import pytest
import torch
import zoo

import peftc
from peftc.dataflow.axes import reshaped

PATCHES = "*.patch_embeddings.projection"
DELTAS = {
    "vector": "vector",
    "bottleneck": {"bottleneck": {"dim": 5, "act": "gelu"}},
    "gated": {"bottleneck": {"dim": 5, "act": "gelu"}},
}


def with_piece(piece, gate, axis, value):
    """What a hook makes of a module's value: the piece along one axis."""
    value = value.movedim(axis, -1)
    if hasattr(piece, "l"):
        return (value * piece.l).movedim(-1, axis)
    delta = piece(value)
    value = value + delta if gate is None else (1 - gate.g) * value + gate.g * delta
    return value.movedim(-1, axis)


@pytest.mark.parametrize("end", ["output", "input"])
@pytest.mark.parametrize("kind", DELTAS)
def test_a_piece_on_patches_works_on_their_channels(kind, end):
    model = zoo.model("vit", "image-classification")
    entry = {"id": "p", "at": {"module": PATCHES, "end": end}, "delta": DELTAS[kind]}
    if kind == "gated":
        entry["compose"] = {"gate": {"init": 0.4, "per": "channel"}}
    program = zoo.captured("vit", "image-classification")
    graph = peftc.apply({"peftc": 1, "name": "n", "insert": [entry]}, program)
    generator = torch.Generator().manual_seed(1)
    for _, p in graph.peft_parameters():
        p.data.add_(torch.randn(p.shape, generator=generator))
    [place] = graph.meta["peftc.applied"].made.insertions[0].places
    assert place.width == (3 if end == "input" else 24)
    piece = graph.get_submodule(f"peft.p.{place.name}")
    gate = graph.get_submodule(f"peft.p.{place.name}_gate") if kind == "gated" else None
    module = next(m for n, m in model.named_modules() if n.endswith(PATCHES[2:]))
    if end == "output":
        hook = module.register_forward_hook(lambda m, x, y: with_piece(piece, gate, 1, y))
    else:
        hook = module.register_forward_pre_hook(
            lambda m, x: (with_piece(piece, gate, 1, x[0]), *x[1:])
        )
    images = torch.randn(2, 3, 12, 12, generator=generator)
    try:
        wanted = model(images).logits
    finally:
        hook.remove()
    found = graph(pixel_values=images).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    parameters = [p for _, p in graph.peft_parameters()]
    ours = torch.autograd.grad(found.square().sum(), parameters)
    theirs = torch.autograd.grad(wanted.square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "axis", "found"),
    [
        ((2, 24, 3, 4), (2, 24, 12), 1, 1),
        ((2, 3, 4, 24), (2, 12, 24), 3, 2),
        ((2, 24, 3, 4), (2, 288), 1, None),
        ((6, 5, 24), (30, 24), 2, 1),
        ((2, 5, 24), (2, 5, 4, 6), 1, 1),
        ((4, 4, 4), (4, 16), 0, 0),
        ((4, 4, 4), (16, 4), 1, None),
        ((1, 24, 1, 1), (1, 24), 1, 1),
    ],
)
def test_where_an_axis_stands_after_a_reshape(before, after, axis, found):
    assert reshaped(before, after, axis) == found
