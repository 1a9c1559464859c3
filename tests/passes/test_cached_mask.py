"""`mask: cached`: windows and relative biases take a prefix for earlier tokens, as in a cache."""

from __future__ import annotations

import functools

import pytest
import reference
import torch
import zoo
from tolerances import PARITY
from transformers import DynamicCache, EncoderDecoderCache, MistralConfig, MistralForCausalLM

import peftc
from peftc.ground.diagnostics import PeftcError

TOKENS = 5
SHAPES = [(3, 8), (2, 13)]


def spec(mask="cached", **more):
    delta = {"prefix": {"tokens": TOKENS, "mask": mask}}
    return {
        "peftc": 1,
        "name": "prefix",
        "insert": [{"id": "pre", "at": "attn.kv", "delta": delta, **more}],
    }


@functools.cache
def windowed(attention="sdpa"):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=95, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, intermediate_size=36, max_position_embeddings=64,
        sliding_window=4, pad_token_id=0,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model


def cache(graph, batch):
    return DynamicCache(
        [
            tuple(t.detach()[None].expand(batch, -1, -1, -1) for t in (p.key, p.value))
            for _, p in reference.placed(graph, "pre")
        ]
    )


def test_a_sliding_window_hides_a_cached_prefix_and_not_an_open_one():
    model = windowed()
    program = zoo.captured_once(model)
    for mask in ("cached", "open"):
        graph = peftc.apply(spec(mask), program)
        reference.randomise(graph)
        for batch, length in SHAPES:
            inputs = zoo.inputs(model, batch, length)
            real = inputs["attention_mask"]
            longer = torch.cat([torch.ones(batch, TOKENS, dtype=torch.long), real], 1)
            with torch.no_grad():
                want = model(
                    inputs["input_ids"], attention_mask=longer, past_key_values=cache(graph, batch)
                ).logits
                got = graph(**inputs).logits
            difference = zoo.real_rows(got - want, real).abs().max()
            assert difference <= PARITY[got.dtype]["atol"] if mask == "cached" else difference > 0.1


def test_relative_biases_of_a_cached_prefix_are_those_of_earlier_tokens():
    model = zoo.model("t5", "seq2seq-lm")
    graph = peftc.apply(spec(stack="decoder"), zoo.captured("t5", "seq2seq-lm"))
    reference.randomise(graph)
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        shape = (batch, TOKENS + inputs["decoder_input_ids"].shape[1])
        past = EncoderDecoderCache(cache(graph, batch), DynamicCache())
        with torch.no_grad():
            want = model(
                **inputs, past_key_values=past, decoder_attention_mask=torch.ones(shape)
            ).logits
            got = graph(**inputs).logits
        torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_the_mask_is_made_again_from_longer_inputs_once():
    graph = peftc.apply(spec(), zoo.captured_once(windowed()))
    made = [n for r in graph.meta["peftc.applied"].reports for n in r.difference]
    assert sum("constant_pad_nd(%attention_mask, [5, 0], 1)" in line for line in made) == 1
    assert sum("%slice" in line and ", -2, 5, " in line for line in made) == 1


def test_written_out_attention_is_refused():
    with pytest.raises(PeftcError) as refusal:
        peftc.apply(spec(), zoo.captured_once(windowed("eager")))
    assert str(refusal.value) == (
        "error[E110]: `mask: cached` needs an attention kernel; model.layers.0.self_attn is "
        "written out\n"
        "  = help: --attn sdpa, where the model has it\n"
        "  = help: mask: open"
    )
