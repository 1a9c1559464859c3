"""Sites found by dataflow are the values that the model's own modules give."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from torch import fx

from peftc.capture import capture
from peftc.dataflow import find_sites
from peftc.dataflow.report import absent_roles, report

FAMILIES = [("bert", "base"), ("gpt2", "causal-lm"), ("llama", "causal-lm"), ("t5", "seq2seq-lm")]


def values_at(program, nodes, inputs):
    """The values of some nodes when the program runs."""
    wanted = set(nodes)
    seen = {}

    class Watch(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n in wanted:
                seen[n] = value
            return value

    with torch.no_grad():
        Watch(program).run(*program.signature.bind(inputs))
    return seen


@pytest.mark.parametrize(("kind", "task"), FAMILIES)
def test_values_at_sites_are_those_of_the_model_s_modules(kind, task):
    model, program = zoo.model(kind, task), zoo.captured(kind, task)
    sites = find_sites(program)
    inputs = zoo.inputs(model, 2, 7)
    known = {**reference.OUTPUTS[kind], **reference.INPUTS[kind]}
    checked = [s for s in sites.sites if s.role in known]
    assert {s.role for s in checked} == set(known) - {"attn.qkv"}
    seen = values_at(program, [s.h for s in checked], inputs)
    expected = {}
    handles = []
    for k, site in enumerate(checked):
        data = {"role": site.role, "stack": site.stack, "layer": site.layer}
        module, is_input = reference.module_at(model, kind, data)

        def note(_m, args, out=None, k=k, is_input=is_input):
            value = args[0] if is_input else out
            expected[k] = value[0] if isinstance(value, tuple) else value

        register = module.register_forward_pre_hook if is_input else module.register_forward_hook
        handles.append(register(note))
    with torch.no_grad():
        model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    for k, site in enumerate(checked):
        torch.testing.assert_close(seen[site.h], expected[k], rtol=0, atol=0, msg=site.name)


def test_a_fused_projection_is_three_sites_of_one_weight():
    sites = find_sites(zoo.captured("gpt2", "causal-lm"))
    rows = {
        s.role: (s.weight.rows[0], s.weight.rows[-1], s.weight.out_width)
        for s in sites.sites
        if s.layer == 1 and s.role in ("attn.q", "attn.k", "attn.v")
    }
    assert rows == {"attn.q": (0, 23, 72), "attn.k": (24, 47, 72), "attn.v": (48, 71, 72)}


@pytest.mark.parametrize(
    ("kind", "task", "heads"),
    [
        ("bert", "base", (4, 4, 6)),
        ("llama", "causal-lm", (4, 2, 10)),
        ("t5", "seq2seq-lm", (4, 4, 10)),
    ],
)
def test_attention_has_its_head_counts(kind, task, heads):
    for a in find_sites(zoo.captured(kind, task)).attentions:
        assert (a.heads, a.kv_heads, a.head_dim) == heads
        assert a.mask is not None


def test_stacks_and_layers():
    sites = find_sites(zoo.captured("t5", "seq2seq-lm"))
    assert sites.layers == {"encoder": 3, "decoder": 2}
    roles = [(a.stack, a.layer, a.role) for a in sites.attentions]
    assert roles == [
        ("encoder", 0, "attn.kv"),
        ("encoder", 1, "attn.kv"),
        ("encoder", 2, "attn.kv"),
        ("decoder", 0, "attn.kv"),
        ("decoder", 0, "cross.kv"),
        ("decoder", 1, "attn.kv"),
        ("decoder", 1, "cross.kv"),
    ]
    assert [e.ids.name for e in sites.embeddings] == ["input_ids", "decoder_input_ids"]


@pytest.mark.parametrize(
    ("kind", "task", "expected"),
    [
        ("bert", "base", [64]),
        ("gpt2", "causal-lm", [64]),
        ("llama", "causal-lm", [None]),
        ("t5", "seq2seq-lm", []),
    ],
)
def test_positions_are_found_where_they_enter(kind, task, expected):
    assert [p.limit for p in find_sites(zoo.captured(kind, task)).positions] == expected


def test_parameters_by_role():
    found = find_sites(zoo.captured("bert", "sequence-classification")).parameters
    model = zoo.model("bert", "sequence-classification")
    names = [n for n, _ in model.named_parameters()]
    assert set(found["norm"]) == {n for n in names if "LayerNorm" in n}
    assert set(found["bias"]) == {n for n in names if n.endswith("bias")}
    assert set(found["head"]) == {"classifier.weight", "classifier.bias"}
    llama = find_sites(zoo.captured("llama", "causal-lm")).parameters
    assert set(llama["norm"]) == {
        n for n, _ in zoo.model("llama", "causal-lm").named_parameters() if "norm" in n
    }
    assert llama["head"] == ()  # vocabulary logits are no head of a task


def test_the_report_names_modules_with_their_layers():
    sites = find_sites(zoo.captured("llama", "causal-lm"))
    rows = {r["site"]: r for r in report(sites)}
    assert rows["attn.v"]["where"] == "model.layers.{i}.self_attn.v_proj"
    assert rows["attn.v"]["width"] == "24 > 20"
    assert rows["attn.v"]["layers"] == "0-2"
    assert rows["attn.kv"]["width"] == "2 x 10"
    assert "cross.kv" in absent_roles(sites)


def test_a_language_model_has_no_head_that_the_task_added():
    """T5 does not name its base: what stands behind the encoder is no head."""
    sites = find_sites(zoo.captured("t5", "seq2seq-lm").clone())
    assert sites.parameters["head"] == ()
    assert find_sites(zoo.captured("gpt2", "causal-lm").clone()).parameters["head"] == ()


def test_sites_of_one_role_in_one_layer_have_names_of_their_own():
    """MobileBERT stacks feed-forwards in a layer."""
    from transformers import MobileBertConfig, MobileBertModel

    config = MobileBertConfig(
        vocab_size=50, hidden_size=24, embedding_size=12, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=20, intra_bottleneck_size=16,
        num_feedforward_networks=3, true_hidden_size=16,
    )  # fmt: skip
    sites = find_sites(capture(MobileBertModel(config).eval()))
    names = [s.name for s in sites.sites]
    assert len(set(names)) == len(names)
    for layer in (0, 1):
        assert sum(n.startswith(f"layer{layer}_ffn_out") for n in names) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_branch_that_joins_the_stream_in_two_sums_is_one_site():
    """NeoMME adds a feed-forward's value to the stream twice; it is adapted once."""
    import tiny

    sites = find_sites(capture(tiny.build("neomme", "masked-lm")))
    assert [s.name for s in sites.sites if s.role == "ffn.down"] == [
        "layer0_ffn_down",
        "layer1_ffn_down",
    ]


@pytest.mark.filterwarnings("ignore")
def test_heads_chosen_by_a_list_are_parts_of_a_fused_projection():
    """Falcon takes its one key and its one value head by [[-2]] and [[-1]]."""
    import tiny

    sites = find_sites(capture(tiny.build("falcon", "causal-lm")))
    first = {s.role: s.weight.rows for s in sites.sites if s.layer == 0 and s.weight}
    assert first["attn.q"] == tuple(range(32))
    assert first["attn.k"] == tuple(range(32, 40))
    assert first["attn.v"] == tuple(range(40, 48))
