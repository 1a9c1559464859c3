"""A prefix where no tokens are embedded."""

from __future__ import annotations

import torch
import zoo

import peftc


def test_an_mlp_is_as_wide_as_the_queries_of_an_image_model():
    model = zoo.build("vit", layers=1)
    graph = peftc.apply("prefix", model, set={"tokens": 3, "hidden": 8})
    pixels = torch.randn(2, 3, 12, 12)
    found = graph(pixel_values=pixels)["last_hidden_state"]
    assert not torch.allclose(found, model(pixel_values=pixels)["last_hidden_state"])
    found.square().mean().backward()
    trained = peftc.trainable(graph)
    assert all(p.grad is not None for p in trained.values())
    assert 24 in {s for p in trained.values() for s in p.shape}
