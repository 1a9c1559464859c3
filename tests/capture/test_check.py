"""After a capture: graphs that hold at one size only are refused, with what would work."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import peftc
from peftc.capture import capture
from peftc.ground.diagnostics import PeftcError


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


def test_a_static_length_captures_what_loops(mamba, tmp_path, captures_once):
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


def test_a_prompt_on_a_static_graph_is_refused(mamba, captures_once):
    with pytest.raises(PeftcError, match=r"error\[E111\].*does not allow it") as refusal:
        peftc.apply("prompt", mamba, static_length=9)
    assert "it is captured for exactly 9 tokens" in str(refusal.value)


def test_a_model_without_attention_has_no_place_for_a_prefix(mamba, captures_once):
    with pytest.raises(PeftcError, match=r"E105.*needs attention keys and values"):
        peftc.apply("ptuning2", mamba, static_length=9)


class Chunked(PreTrainedModel):
    """Sums over the tokens before, in chunks of 64 as gated delta rules have them."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.words, self.head = nn.Embedding(50, 6), nn.Linear(6, 50)

    def forward(self, input_ids=None, attention_mask=None):
        length = input_ids.shape[1]
        x = nn.functional.pad(self.words(input_ids), (0, 0, 0, (64 - length % 64) % 64))
        total, parts = x.new_zeros(x.shape[0], 1, 6), []
        for k in range(x.shape[1] // 64):
            parts.append(total + x[:, 64 * k : 64 * (k + 1)].cumsum(1))
            total = parts[-1][:, -1:]
        return CausalLMOutput(logits=self.head(torch.cat(parts, 1)[:, :length]))


def test_a_chunked_model_that_holds_for_one_chunk_only_is_refused():
    model = Chunked(PretrainedConfig()).eval()
    with pytest.raises(PeftcError) as refusal:
        capture(model)
    lines = str(refusal.value).splitlines()
    assert lines[0] == "error[E202]: the graph of Chunked does not hold at batch 2, sequence 70"
    assert lines[2:] == [
        "  = note: it holds up to 64 tokens; what the model's code does beyond, in further chunks "
        "or windows, is not in a trace of 11 tokens",
        "  = help: --static-length N captures it for inputs of exactly N tokens",
    ]
    program = capture(model, static_length=70)
    ids = torch.arange(140).reshape(2, 70) % 50
    assert torch.equal(program(input_ids=ids)["logits"], model(ids).logits)


def test_a_graph_on_meta_tensors_is_not_run(mamba):
    with torch.device("meta"):
        model = MambaForCausalLM(mamba.config).eval()
    assert peftc.sites(model, static_length=9).layers == {"": 2}
