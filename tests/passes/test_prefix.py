"""Prefixes: equal to the model's own past_key_values, and to a prefix in its attention function."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import PARITY
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import peftc

TOKENS = 5
PREFIX = {
    "peftc": 1,
    "name": "prefix",
    "insert": [{"id": "pre", "at": "attn.kv", "delta": {"prefix": {"tokens": TOKENS}}}],
}
SHAPES = [(4, 9), (1, 5)]


def keys_and_values(graph, batch):
    """Each layer's prefix as a cache holds it: (batch, kv_heads, tokens, head_dim)."""
    return [
        tuple(t.detach()[None].expand(batch, -1, -1, -1) for t in (p.key, p.value))
        for _, p in reference.placed(graph, "pre")
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prefix_equals_the_model_s_own_cache(kind, attention):
    """With "eager" the attention is a softmax written out, and stays one."""
    if attention == "sdpa":
        model, program = zoo.model(kind, "causal-lm"), zoo.captured(kind, "causal-lm")
    else:
        model = zoo.build(kind, "causal-lm")
        model.set_attn_implementation(attention)
        program = zoo.captured_once(model)
    graph = peftc.apply(PREFIX, program)
    reference.randomise(graph)
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        cache = DynamicCache(keys_and_values(graph, batch))
        ones = torch.ones(batch, TOKENS, dtype=torch.long)
        mask = torch.cat([ones, inputs["attention_mask"]], 1)
        with torch.no_grad():
            want = model(inputs["input_ids"], attention_mask=mask, past_key_values=cache).logits
            got = graph(**inputs).logits
            plain = model(**inputs).logits
        real = inputs["attention_mask"]
        torch.testing.assert_close(
            zoo.real_rows(got, real), zoo.real_rows(want, real), **PARITY[got.dtype]
        )
        assert (zoo.real_rows(got - plain, real)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "task", "positions", "layers"),
    [
        ("bert", "base", "keep", "all"),
        ("bert", "base", "shift", [0, 2]),
        ("t5", "seq2seq-lm", "keep", "all"),
        ("llama", "causal-lm", "keep", "all"),
    ],
)
def test_a_prefix_equals_one_in_the_attention_function(kind, task, positions, layers):
    """Shifted positions are the model's own, given; other layers than the spec's have none."""
    spec = {**PREFIX, "insert": [{**PREFIX["insert"][0], "layers": layers}]}
    spec["insert"][0]["delta"] = {"prefix": {"tokens": TOKENS, "positions": positions}}
    model = zoo.model(kind, task)
    graph = peftc.apply(spec, zoo.captured(kind, task))
    reference.randomise(graph)
    own = iter(())

    def attend(module, query, key, value, attention_mask, position_bias=None, **kwargs):
        if module in without:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
            )
        if attention_mask is None and module.is_causal:
            ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
            attention_mask = ones.tril()[None, None]
        k, v = next(own)
        key, value = torch.cat([k, key], 2), torch.cat([v, value], 2)
        if attention_mask is not None:
            attention_mask = torch.nn.functional.pad(attention_mask, (TOKENS, 0), value=True)
        if position_bias is not None:
            position_bias = torch.nn.functional.pad(position_bias, (TOKENS, 0))
        kwargs["is_causal"] = False
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
        )

    without = {b.layer[1].EncDecAttention for b in model.decoder.block} if kind == "t5" else set()
    if layers != "all":
        without |= {model.encoder.layer[1].attention.self}
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        at = {}
        if positions == "shift":
            at["position_ids"] = torch.arange(TOKENS, TOKENS + length)[None]
        own = iter(keys_and_values(graph, batch))
        with torch.no_grad():
            with reference.attention(model, attend):
                want = reference.main_output(model(**inputs, **at, use_cache=False))
            got = reference.main_output(graph(**inputs))
        torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_a_reparameterised_prefix_has_one_network_for_all_layers_and_folds_away():
    from peftc.rewrite.pipeline import fold

    spec = {
        "peftc": 1,
        "name": "prefix",
        "insert": [
            {
                "id": "pre",
                "at": "attn.kv",
                "delta": {"prefix": {"tokens": TOKENS, "reparam": {"hidden": 11}}},
            }
        ],
    }
    model = zoo.model("llama", "causal-lm")
    graph = peftc.apply(spec, zoo.captured("llama", "causal-lm"))
    reference.randomise(graph)
    shapes = {n: tuple(p.shape) for n, p in graph.peft_parameters()}
    assert shapes == {
        "peft.pre.reparam.embedding": (5, 24),
        "peft.pre.reparam.hidden.weight": (11, 24),
        "peft.pre.reparam.hidden.bias": (11,),
        "peft.pre.reparam.out.weight": (3 * 2 * 2 * 10, 11),
        "peft.pre.reparam.out.bias": (120,),
    }
    folded, _ = fold(graph)
    kept = {n for n, _ in folded.peft_parameters()}
    assert kept == {f"peft.pre.layer{k}_attn_kv.{x}" for k in range(3) for x in ("key", "value")}
    inputs = zoo.inputs(model, 4, 9)
    with torch.no_grad():
        torch.testing.assert_close(folded(**inputs).logits, graph(**inputs).logits, rtol=0, atol=0)
        assert (graph(**inputs).logits - model(**inputs).logits).abs().max() > 1e-3


def test_a_mask_that_layers_share_is_padded_once():
    graph = peftc.apply(PREFIX, zoo.captured("bert", "base"))
    pads = [n for n in graph.graph.nodes if n.target is torch.ops.aten.constant_pad_nd.default]
    assert len(pads) == 1


def test_an_attention_that_a_prefix_cannot_enter_is_refused():
    """A step between scores and softmax that is neither a scale nor a mask."""
    model = zoo.build("bert")
    model.set_attn_implementation("eager")
    program = zoo.captured_once(model)
    softmax = next(n for n in program.graph.nodes if n.target is torch.ops.aten.softmax.int)
    scores = softmax.args[0]
    with program.graph.inserting_before(softmax):
        step = program.graph.call_function(torch.ops.aten.nan_to_num.default, (scores,))
    step.meta = dict(scores.meta)
    softmax.replace_input_with(scores, step)
    program.recompile()
    with pytest.raises(peftc.PeftcError) as refusal:
        peftc.apply(PREFIX, program)
    assert str(refusal.value) == (
        "error[E110]: a prefix cannot be put into the attention of "
        "encoder.layer.0.attention.self: `aten.nan_to_num.default` is an unknown step "
        "on its scores\n"
        "  = help: --attn sdpa, where the model has it\n"
        "  = help: a prompt, an adapter or LoRA instead"
    )
