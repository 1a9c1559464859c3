"""Random stacks of mergeable pieces on shared sites: equal outputs, and what is said is so."""

from __future__ import annotations

import functools

import pytest
import reference
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

import peftc
from peftc.capture import capture
from peftc.ground.diagnostics import PeftcError
from peftc.methods.registry import piece_class
from peftc.passes.folding import patterns
from peftc.rewrite.merging import foreseen, insertions, outcomes, wanted
from peftc.rewrite.pipeline import fold
from peftc.spec.deltas import all_deltas

# What a stack may stand on: fused with biases and transposed (gpt2), fused and interleaved by
# heads (neox), apart with biases (bert), apart without, with shared keys and values (llama), and
# a table that also is the head's weight (tied).
SITES = ["attn.q", "attn.k", "attn.v", "ffn.up", "ffn.down", "ffn.act", "attn.out", "attn.heads"]
KINDS = ["bert", "gpt2", "neox", "llama", "tied"]
FLOAT64 = {"rtol": 0.0, "atol": 1e-12}


@functools.cache
def captured(kind):
    """(model, capture): one layer in float64."""
    if kind == "neox":
        config = GPTNeoXConfig(
            vocab_size=97, hidden_size=24, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=64, num_labels=5, pad_token_id=0,
        )  # fmt: skip
        model = AutoModel.from_config(config)
    elif kind == "tied":
        config = LlamaConfig(
            vocab_size=95, hidden_size=24, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=10, intermediate_size=36, tie_word_embeddings=True,
            max_position_embeddings=64, pad_token_id=0,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
    else:
        model = zoo.build(kind, layers=1)
    if kind in ("neox", "tied"):
        torch.manual_seed(0)
        for p in model.parameters():
            p.data.normal_(float(p.dim() == 1), 0.3)
    model = model.double().eval()
    return model, capture(model)


@st.composite
def insertion(draw, where):
    """One piece of any kind, at one of the places."""
    kind = draw(st.sampled_from(["low_rank", "vector", "low_rank", "vector", "dora"]))
    able = [s for s in where if kind == "vector" or s.endswith((".q", ".k", ".v", ".up", ".down"))]
    able += ["embed.out"] if kind == "low_rank" and "embed.out" in where else []
    options = {} if kind == "vector" else {"rank": 2}
    options |= draw(st.sampled_from([{}, {"bias": True}])) if kind == "low_rank" else {}
    options |= draw(st.sampled_from([{}, {"scale": 3}])) if kind == "dora" else {}
    compose = "multiply"
    if kind != "vector" or draw(st.booleans()):
        gates = [{}, {}, {"gate": {"init": 0.7}}, {"gate": {"init": 0.7, "per": "channel"}}]
        compose = {"add": {"scale": draw(st.sampled_from([1, 2.5]))} | draw(st.sampled_from(gates))}
    return {"at": draw(st.sampled_from(able)), "delta": {kind: options}, "compose": compose}


@st.composite
def stacks(draw):
    """(model kind, spec): up to five pieces at places that lie near one another."""
    kind = draw(st.sampled_from(KINDS))
    near = draw(st.sampled_from([SITES[:3], SITES[3:6], SITES[2::5], ["attn.q", "embed.out"]]))
    written = spec(*draw(st.lists(insertion(near), min_size=1, max_size=5)))
    if draw(st.booleans()):
        names = [i["id"] for i in written["insert"]]
        chosen = draw(st.sets(st.sampled_from(names), min_size=1))
        written["export"] = {"fold": sorted(chosen)}
    return kind, written


def spec(*insert, **more):
    """A spec of these insertions, named i0 and so on."""
    named = [{"id": f"i{k}", **one} for k, one in enumerate(insert)]
    return {"peftc": 1, "name": "stack", "insert": named, **more}


def folded(kind, written):
    """What is merged, by insertion: foreseen from the plan, and so, with equal outputs."""
    model, program = captured(kind)
    graph = peftc.apply(written, program)
    reference.randomise(graph)
    plan = peftc.plan(written, program)
    before = insertions(graph)
    after, _ = fold(graph, merge=wanted(plan.spec))
    found = outcomes(before, insertions(after))
    assert found == foreseen(plan)
    for one in found:
        left = [n for n in after.graph.nodes if str(n.target).startswith(f"peft.{one.id}.")]
        assert one.merged == (not left)
    for batch, length in ((3, 7), (2, 5)):
        given = zoo.inputs(model, batch, length)
        with torch.no_grad():
            got, want, plain = (f(**given)[0] for f in (after, graph, program))
        torch.testing.assert_close(got, want, **FLOAT64)
        assert (want - plain).abs().max() > 1e-3
    return {o.id: o.merged for o in found}


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(stacks())
def test_any_stack_gives_equal_outputs_and_what_is_said_is_so(case):
    kind, written = case
    apart = [i for i in written["insert"] if "dora" in i["delta"] and i["at"].startswith("attn.")]
    if kind == "neox" and apart:  # the rows of its heads lie apart
        with pytest.raises(PeftcError, match=r"E111"):
            peftc.apply(written, captured(kind)[1])
    else:
        folded(kind, written)


LORA, BIASED, DORA = ({"low_rank": {"rank": 2}}, {"low_rank": {"rank": 2, "bias": True}},
                      {"dora": {"rank": 2}})  # fmt: skip
GATED = {"add": {"scale": 2, "gate": {"init": 0.7, "per": "channel"}}}
MERGED = {
    "update, vector, update, vector": [
        {"at": "attn.q", "delta": d} for d in (LORA, "vector", LORA, "vector")
    ],
    "everything on one value": [
        {"at": "ffn.up", "delta": DORA, "compose": {"add": {"scale": 2}}},
        {"at": "ffn.up", "delta": LORA, "compose": GATED},
        {"at": "ffn.up", "delta": "vector"},
    ],
    "parts of one projection": [
        {"at": "attn.k", "delta": "vector"},
        {"at": "attn.v", "delta": LORA},
        {"at": "attn.k", "delta": LORA},
        {"at": "attn.v", "delta": "vector"},
    ],
    "a vector between two linears": [
        {"at": "ffn.act", "delta": "vector"},
        {"at": "ffn.down", "delta": DORA, "compose": GATED},
        {"at": "ffn.down", "delta": "vector"},
    ],
}


@pytest.mark.parametrize("stack", MERGED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_of_linear_pieces_leaves_nothing(kind, stack):
    assert all(folded(kind, spec(*MERGED[stack])).values())


TABLE = {"at": "embed.out", "delta": BIASED}


def test_an_update_of_a_table_is_merged_unless_the_head_reads_it_too():
    assert folded("llama", spec(TABLE)) == {"i0": True}
    assert folded("tied", spec(TABLE)) == {"i0": False}


def test_what_a_linear_without_a_bias_cannot_take_stays():
    shift = {"at": "attn.v", "delta": "vector", "compose": "add"}
    after = {"at": "attn.v", "delta": LORA}
    assert folded("bert", spec(shift, after)) == {"i0": True, "i1": True}
    assert folded("llama", spec(shift, after)) == {"i0": False, "i1": False}


def test_what_stands_on_what_stays_is_not_said_to_be_merged():
    """The second vector scales the sum with an update that is to stay."""
    insert = [{"at": "attn.q", "delta": d} for d in ("vector", LORA, "vector")]
    written = spec(*insert, export={"fold": ["i0", "i2"]})
    assert folded("bert", written) == {"i0": True, "i1": False, "i2": False}


def one_of(kind, composes):
    """An insertion of a delta that claims to merge, where it can."""
    options = {} if kind == "vector" else {"rank": 2}
    return {"at": "attn.q", "delta": {kind: options}, "compose": composes}


@pytest.mark.parametrize(
    ("kind", "composes"),
    [(k, c) for k, o in all_deltas().items() if o.merges for c in o.composes],
)
def test_a_delta_that_claims_to_merge_has_a_pattern_that_merges_it(kind, composes):
    assert piece_class(kind) in patterns()
    assert folded("bert", spec(one_of(kind, composes))) == {"i0": True}


def test_a_pattern_is_of_a_delta_that_claims_to_merge():
    assert {piece.kind for piece in patterns()} == {k for k, o in all_deltas().items() if o.merges}
