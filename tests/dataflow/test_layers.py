"""Layer numbers: by the order and the kinds of blocks, beside the numbers in module paths."""

from __future__ import annotations

import functools

import pytest
import tiny
from layer_numbers import differing

import peftc
from peftc.capture import capture
from peftc.dataflow import find_sites
from peftc.dataflow.layers import Step, layers_of

A, X, M, F, N = (Step((kind,), "") for kind in ("attn", "cross", "mixer", "ffn", "other"))


def mixer(place: str) -> Step:
    return Step(("mixer",), place)


def attn(place: str) -> Step:
    return Step(("attn",), place)


@pytest.mark.parametrize(
    ("steps", "layers"),
    [
        ([A, F, A, F], [0, 0, 1, 1]),
        ([Step(("ffn", "attn")), Step(("ffn", "attn"))], [0, 1]),
        ([A, X, F, A, X, F], [0, 0, 0, 1, 1, 1]),
        ([F, A, M, F, F, A, M, F], [0, 0, 0, 0, 1, 1, 1, 1]),
        ([F, A, F, A, F], [0, 0, 0, 1, 1]),
        ([F, A, F, F, A, F], [0, 0, 0, 1, 1, 1]),
        ([F, A, F], [0, 0, 0]),
        ([F, F, F], [0, 1, 2]),
        ([X, F, X, F], [0, 0, 1, 1]),
        ([N, F, N, F], [0, 0, 1, 1]),
        ([A, F, N, A, F, N], [0, 0, 0, 1, 1, 1]),
        ([N, A, F, A, F], [0, 0, 0, 1, 1]),
        ([mixer("l.0"), F, attn("l.1"), F, mixer("l.2"), F], [0, 0, 1, 1, 2, 2]),
        ([mixer("l.0"), attn("l.0"), F, mixer("l.1"), attn("l.1"), F], [0, 0, 0, 1, 1, 1]),
        ([], []),
    ],
)
def test_steps_are_numbered_by_their_layer(steps, layers):
    steps = [Step(s.kinds, s.place or f"m.{k}") if s in (A, M) else s for k, s in enumerate(steps)]
    if layers == [0, 0, 0, 0, 1, 1, 1, 1]:  # attention and convolution of one layer
        steps = [Step(s.kinds, f"m.{k // 4}") for k, s in enumerate(steps)]
    assert layers_of(steps) == layers


# type -> its task: in each of these something stands beside, before or around attention.
TYPES = {
    "falcon": "causal-lm",
    "gpt_neox": "causal-lm",
    "gptj": "causal-lm",
    "cohere": "causal-lm",
    "falcon_h1": "causal-lm",
    "fnet": "masked-lm",
    "doge": "causal-lm",
    "bart": "seq2seq-lm",
    "longt5": "seq2seq-lm",
    "gemma3n_text": "causal-lm",
}


@functools.cache
def captured(name: str):
    return capture(tiny.build(name, TYPES.get(name, "masked-lm")))


@pytest.mark.parametrize("name", TYPES)
def test_layers_are_those_of_the_module_paths(name):
    sites = find_sites(captured(name))
    places = [(p.role, p.stack, p.layer, p.module) for p in (*sites.sites, *sites.attentions)]
    placed = [p for p in places if p[2] is not None]
    assert placed
    assert set(sites.layers.values()) == {2}
    assert not differing(placed)


@pytest.mark.parametrize("name", ["falcon", "gpt_neox"])
def test_the_last_layer_is_the_last_module(name):
    insert = {"id": "a", "at": ["attn.q", "ffn.down"], "layers": "last 1", "delta": "vector"}
    spec = {"peftc": 1, "name": "n", "insert": [insert], "expect": {"sites": 2}}
    made = peftc.plan(spec, captured(name))
    assert all(".1." in place.module for place in made.insertions[0].places)


def test_layers_that_share_their_weights_are_numbered_as_they_run():
    sites = find_sites(captured("albert"))
    assert [s.layer for s in sites.sites if s.role == "ffn.down"] == [0, 1]
    assert len({s.module for s in sites.sites if s.role == "ffn.down"}) == 1
