"""Prefixes of their own for an encoder, a decoder, and what the decoder sees of the encoder."""

from __future__ import annotations

import functools

import peft_cases
import pytest
import reference
import torch
import zoo
from tolerances import PARITY

import peftc
from peftc.dataflow import find_sites
from peftc.rewrite.pipeline import fold

# What stands where, of different lengths, in the names of the shipped spec.
LENGTHS = {"encoder": 2, "decoder": 3, "cross": 4}
WHERE = {
    "t5": {
        "encoder": "encoder.block.{}.layer.0.SelfAttention",
        "decoder": "decoder.block.{}.layer.0.SelfAttention",
        "cross": "decoder.block.{}.layer.1.EncDecAttention",
    },
    "bart": {
        "encoder": "model.encoder.layers.{}.self_attn",
        "decoder": "model.decoder.layers.{}.self_attn",
        "cross": "model.decoder.layers.{}.encoder_attn",
    },
}
CLOSE = PARITY[torch.float32]


def family(kind):
    if kind == "t5":
        return zoo.model("t5", "seq2seq-lm"), zoo.captured("t5", "seq2seq-lm")
    return bart(), peft_cases.captured("bart", "SEQ_2_SEQ_LM")


@functools.cache
def bart():
    return peft_cases.build("bart", "SEQ_2_SEQ_LM")


def kept():
    """The shipped spec with real tokens at the positions they have without a prefix."""
    spec = peftc.load_spec("prefix_seq2seq", set={**LENGTHS, "hidden": 7}).to_dict()
    for entry in spec["insert"]:
        entry["delta"]["prefix"]["positions"] = "keep"
    return spec


def logits(model, of, inputs):
    """The logits of the model, its attentions seeing `of`: module -> (key, value)."""
    with reference.seeing(model, of), torch.no_grad():
        return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoder_and_cross_attention_each_see_their_own(kind):
    model, program = family(kind)
    graph = peftc.apply(kept(), program)
    reference.randomise(graph)
    folded, _ = fold(graph, constants=False)
    of = {
        name: {
            model.get_submodule(WHERE[kind][name].format(s["layer"])): (piece.key, piece.value)
            for s, _ in reference.placed(graph, name)
            for piece in [folded.get_submodule(f"peft.{name}.{s['name']}")]
        }
        for name in LENGTHS
    }
    layers = {"t5": {"encoder": 3, "decoder": 2}, "bart": {"encoder": 4, "decoder": 4}}[kind]
    for name, pieces in of.items():
        assert len(pieces) == layers.get(name, layers["decoder"])
        assert all(k.shape[1] == LENGTHS[name] for k, _ in pieces.values())
    for shape in ((3, 9), (2, 14)):
        inputs = peft_cases.inputs(model, *shape)
        every = {m: pair for pieces in of.values() for m, pair in pieces.items()}
        want = logits(model, every, inputs)
        with torch.no_grad():
            got = graph(**inputs).logits
        real = inputs["decoder_attention_mask"]
        torch.testing.assert_close(zoo.real_rows(got, real), zoo.real_rows(want, real), **CLOSE)
        for pieces in of.values():
            others = {m: pair for m, pair in every.items() if m not in pieces}
            less = logits(model, others, inputs)
            assert zoo.real_rows(got - less, real).abs().max() > 1e-2


def test_a_shift_moves_the_positions_of_its_own_stack():
    """BART's decoder counts its tokens and reads none of them for it."""
    found = find_sites(peft_cases.captured("bart", "SEQ_2_SEQ_LM").clone()).positions
    assert [p.stack for p in found] == ["encoder", "decoder"]
