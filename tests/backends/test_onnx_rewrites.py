"""What the ONNX graph is rewritten to for a CPU; the files run in a process without peftc."""

from __future__ import annotations

import linking
import onnx
import pytest
import reference
import torch
import zoo
from transformers import BartConfig, BartModel

import peftc
from peftc.capture import capture


def nodes(folder):
    """The nodes of an exported graph by what they compute."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    found = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, []).append(node)
    return found, {i.name: tuple(i.dims) for i in model.graph.initializer}


def weights_turned(found, shapes):
    """How many transposes are of weights, of how many in all."""
    turned = found.get("Transpose", [])
    return sum(t.input[0] in shapes for t in turned), len(turned)


def exported(graph, folder, **options):
    """The nodes and initializers of a graph's file, whose outputs equal the graph's."""
    reference.randomise(graph)
    peftc.export(graph, "onnx", folder, **options)
    report = peftc.verify(graph, folder)
    assert report.ok, report
    assert {r.batch for r in report.rows} >= {1, 4}
    return nodes(folder)


def heads(node):
    """The attributes of an attention that say how many heads it has."""
    return {a.name: a.i for a in node.attribute if a.name.endswith("_heads")}


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_attention_reads_and_writes_the_layout_of_the_projections(family, tmp_path):
    found, shapes = exported(zoo.captured(family, layers=1).clone(), tmp_path / "out")
    assert {4} == {v for n in found["Attention"] for v in heads(n).values()}
    ours, turned = weights_turned(found, shapes)
    assert turned - ours == {"bert": 0, "gpt2": 0, "t5": 2}[family]  # T5's are of its biases


def test_encoder_and_decoder_of_different_lengths(tmp_path):
    torch.manual_seed(0)
    config = BartConfig(
        d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, vocab_size=99,
    )  # fmt: skip
    graph = peftc.apply(
        "prefix_seq2seq",
        capture(BartModel(config).eval()),
        set={"encoder": 2, "decoder": 3, "cross": 4},
    )
    found, shapes = exported(graph, tmp_path / "out")
    assert [len(heads(n)) for n in found["Attention"]] == [2, 2, 2]
    ours, turned = weights_turned(found, shapes)
    assert turned == ours


def test_a_prefix_is_turned_before_it_is_repeated_and_keeps_its_name(tmp_path):
    graph = peftc.apply("prefix", zoo.captured("bert"), set={"tokens": 5})
    found, shapes = exported(graph, tmp_path / "out")
    keys = [n for n in shapes if n.endswith("attn_kv.key")]
    assert [shapes[n] for n in keys] == [(1, 4, 5, 6)] * 3
    ours, turned = weights_turned(found, shapes)
    assert turned == ours
    joins = [n for n in found["Concat"] if n.output[0] in {k.input[1] for k in found["Attention"]}]
    assert [a.i for n in joins for a in n.attribute] == [1, 1, 1]


@pytest.mark.parametrize(
    ("family", "spec"), [("llama", "prefix"), ("bert", "unipelt")], ids=["rotary", "gated"]
)
def test_keys_that_are_computed_head_by_head_stay_in_front(family, spec, tmp_path):
    found, _ = exported(peftc.apply(spec, zoo.captured(family, layers=1)), tmp_path / "out")
    assert not any(heads(n) for n in found["Attention"])


def test_one_constant_keeps_the_tokens_of_all_gated_prefixes_apart(tmp_path):
    graph = peftc.apply("unipelt", zoo.captured("bert"), set={"tokens": 3, "hidden": 7})
    found, shapes = exported(graph, tmp_path / "out")
    assert "EyeLike" not in found
    assert [s for s in shapes.values() if s == (3, 6 + 4)] == [(3, 10)]


def test_halves_keep_their_heads_in_front(tmp_path):
    model = zoo.build("bert", layers=1).half()
    peftc.export(capture(model), "onnx", tmp_path / "out", weights="copy")
    found, _ = nodes(tmp_path / "out")
    assert not any(heads(n) for n in found["Attention"])


@pytest.mark.parametrize("opset", [20, 24])
def test_projections_and_their_updates_are_one_product_and_keep_their_weights(opset, tmp_path):
    """[x, x A^T] [W, B]^T: a product for the A's, one a projection, and no sum of two outputs."""
    base = zoo.captured("bert")
    plain, _ = exported(base.clone(), tmp_path / "base", opset=opset)
    graph = peftc.apply("lora", base, set={"rank": 2})
    found, shapes = exported(graph, tmp_path / "out", fold="unmerged", opset=opset)
    for name, parameter in graph.peft_parameters():
        assert shapes[name] == tuple(parameter.shape), name
    joined = [list(n.input) for n in found["Concat"] if n.input[0].endswith(".A")]
    assert joined == [[f"peft.qv.layer{k}_attn_{p}.A" for p in "qv"] for k in range(3)]
    assert len(found["MatMul"]) == len(plain["MatMul"]) + 3
    assert len(found["Add"]) == len(plain["Add"])
    assert "Split" not in found


def test_an_update_of_a_projection_without_bias_and_alone_at_its_input(tmp_path):
    base = zoo.captured("llama", layers=1)
    plain, _ = exported(base.clone(), tmp_path / "base")
    spec = {"peftc": 1, "name": "o", "insert": [
        {"id": "o", "at": "ffn.down", "delta": {"low_rank": {"rank": 2}}, "compose": "add"},
    ]}  # fmt: skip
    found, _ = exported(peftc.apply(spec, base), tmp_path / "out", fold="unmerged")
    assert len(found["MatMul"]) == len(plain["MatMul"]) + 1
    assert len(found["Add"]) == len(plain["Add"])


def test_two_updates_of_one_projection_and_one_of_the_outputs(tmp_path):
    """Neither sum is of a projection alone, or is free to go: only the A's share a product."""
    update = {"low_rank": {"rank": 2}}
    spec = {"peftc": 1, "name": "two", "insert": [
        {"id": "a", "at": "attn.q", "delta": update, "compose": "add"},
        {"id": "b", "at": "attn.q", "delta": update, "compose": "add"},
        {"id": "head", "at": {"module": "classifier"}, "delta": update, "compose": "add"},
    ]}  # fmt: skip
    graph = peftc.apply(spec, zoo.captured("bert", "sequence-classification", layers=1))
    found, _ = exported(graph, tmp_path / "out", fold="unmerged")
    assert len(found["Split"]) == 1


def test_linked_weights_stay_apart_from_their_updates():
    """Nothing is folded where a file is linked: a joined weight would be made anew in each run."""
    found, _ = nodes(linking.linked("bert", "base", "lora", False).folder)
    assert len(found["Split"]) == 1


def test_a_wide_weight_is_not_joined(tmp_path, monkeypatch):
    monkeypatch.setattr("peftc.backends.onnx_shared.NARROW", 7)
    graph = peftc.apply("lora", zoo.captured("bert", layers=1), set={"rank": 8})
    found, _ = exported(graph, tmp_path / "out", fold="unmerged")
    assert "Split" not in found
