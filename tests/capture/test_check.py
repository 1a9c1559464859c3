"""After a capture: graphs that hold at one size only are refused, with what would work."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

import peftc
from peftc.capture import capture
from peftc.diagnostics import PeftcError


@pytest.fixture(scope="module")
def mamba():
    """A state space model: its forward loops over the tokens."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, state_size=6)
    return MambaForCausalLM(config).eval()


def test_a_loop_over_tokens_is_refused_and_static_length_is_offered(mamba):
    with pytest.raises(PeftcError) as refusal:
        capture(mamba)
    assert str(refusal.value) == (
        "error[E201]: torch.export cannot capture MambaForCausalLM\n"
        "  = note: its code needs the length as a number: it loops over tokens or chunks\n"
        "  = help: --static-length N captures it for inputs of exactly N tokens"
    )
    assert refusal.value.exit_code == 4


def test_a_static_length_captures_what_loops(mamba, tmp_path):
    ids = torch.arange(18).reshape(2, 9) + 3
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    spec = {"peftc": 1, "name": "x", "insert": [
        {"id": "a", "at": "mixer.out", "delta": {"bottleneck": {"dim": 3}}},
    ]}  # fmt: skip
    graph = peftc.apply(spec, mamba, static_length=9)
    assert graph.signature.static_length == 9
    wanted = mamba(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(graph(input_ids=ids, attention_mask=mask)["logits"], wanted)
    for p in peftc.trainable(graph).values():
        torch.nn.init.normal_(p, std=0.3)
    changed = graph(input_ids=ids, attention_mask=mask)["logits"]
    assert not torch.allclose(changed, wanted)
    peftc.save(graph, tmp_path / "out")
    again = peftc.load(tmp_path / "out", mamba)
    assert torch.equal(again(input_ids=ids, attention_mask=mask)["logits"], changed)


def test_a_prompt_on_a_static_graph_is_refused(mamba):
    with pytest.raises(PeftcError, match=r"error\[E111\].*does not allow it") as refusal:
        peftc.apply("prompt", mamba, static_length=9)
    assert "it is captured for exactly 9 tokens" in str(refusal.value)


def test_a_model_without_attention_has_no_place_for_a_prefix(mamba):
    with pytest.raises(PeftcError, match=r"E105.*needs attention keys and values"):
        peftc.apply("ptuning2", mamba, static_length=9)


def test_a_chunked_model_that_holds_for_one_chunk_only_is_refused():
    """The gated delta rule works on chunks of 64 tokens; a trace of 11 has one."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, intermediate_size=20, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=6, num_experts=0,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    with pytest.raises(PeftcError) as refusal:
        capture(Qwen3NextForCausalLM(config).eval())
    assert str(refusal.value).startswith(
        "error[E202]: the graph of Qwen3NextForCausalLM does not hold at batch 2, sequence 70\n"
    )
    assert "--static-length N" in str(refusal.value)


def test_a_graph_on_meta_tensors_is_not_run(mamba):
    with torch.device("meta"):
        model = MambaForCausalLM(mamba.config).eval()
    assert peftc.sites(model, static_length=9).layers == {"": 2}
