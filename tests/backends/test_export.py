"""Every exported file is run by its own runtime, at other sizes, in a process of its own."""

from __future__ import annotations

import json

import pytest
import reference
import torch
import zoo

import peftc
from peftc.backends import backends
from peftc.backends.export import FACTS
from peftc.backends.report import Report, Row
from peftc.ground.diagnostics import PeftcError

FAMILIES = [
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("t5", "seq2seq-lm"),
]
CASES = [
    *[(FAMILIES[k], "onnx", 24) for k in (0, 3, 4)],
    *[(family, "torchscript", None) for family in FAMILIES],
    *[(FAMILIES[k], "onnx", 20) for k in (1, 2)],
]


@pytest.mark.parametrize(("family", "kind", "opset"), CASES)
def test_a_folded_export_equals_the_graph(family, kind, opset, tmp_path):
    graph = peftc.apply("lora", zoo.captured(*family))
    reference.randomise(graph)
    peftc.export(graph, kind, tmp_path / "out", opset=opset)
    report = peftc.verify(graph, tmp_path / "out")
    assert len({(r.batch, r.length) for r in report.rows}) >= 4
    assert any(r.padded for r in report.rows)
    assert {r.batch for r in report.rows} >= {1, 4}
    assert report.ok, report


@pytest.mark.parametrize("spec", ["houlsby", "prefix", "prompt", "ptuning2", "ia3"])
@pytest.mark.parametrize(
    ("family", "kind"), [(("bert", "base"), "onnx"), (("llama", "causal-lm"), "torchscript")]
)
def test_every_spec_exports_with_its_pieces(family, kind, spec, tmp_path):
    settings = {"tokens": 5} if spec in ("prefix", "prompt", "ptuning2") else {}
    graph = peftc.apply(spec, zoo.captured(*family, layers=1), set=settings)
    reference.randomise(graph)
    exported = peftc.export(graph, kind, tmp_path / "out", fold="none")
    assert exported.facts["peft"]
    assert peftc.verify(graph, tmp_path / "out").ok


def test_onnx_initializers_are_the_state_dict_and_equal_ones_stay_apart(tmp_path, monkeypatch):
    import onnx

    monkeypatch.setattr("torch.fx.config.do_not_emit_stack_traces", False)  # as where it is used
    graph = peftc.apply("lora", zoo.captured("bert", "base"))
    peftc.export(graph, "onnx", tmp_path / "out", fold="none")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    for name, parameter in graph.named_parameters():
        assert shapes[name] == tuple(parameter.shape), name
    zeros = [n for n in shapes if n.startswith("peft.") and n.endswith(".B")]
    assert len(zeros) == 6
    dims = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert dims == {
        name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 200_000


def test_onnx_runtime_keeps_additions_out_of_its_slow_kernel(tmp_path):
    import onnx
    import onnxruntime

    peftc.export(zoo.captured("bert", "base"), "onnx", tmp_path / "out", weights="copy")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "out" / "fused.onnx")
    onnxruntime.InferenceSession(
        tmp_path / "out" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    fused = onnx.load(tmp_path / "out" / "fused.onnx", load_external_data=False).graph.node
    kinds = {n.op_type for n in fused}
    assert {"BiasGelu", "LayerNormalization"} <= kinds
    assert "SkipLayerNormalization" not in kinds


def test_a_wrong_file_is_found_and_a_damaged_one_refused(tmp_path):
    graph = peftc.apply("lora", zoo.captured("bert", "base", layers=1))
    peftc.export(graph, "onnx", tmp_path / "out")
    reference.randomise(graph)
    report = peftc.verify(graph, tmp_path / "out")
    assert not report.ok
    assert report.difference > 1e-3
    data = tmp_path / "out" / "model.safetensors"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(PeftcError, match=r"error\[E303\].*model.safetensors is damaged"):
        peftc.verify(graph, tmp_path / "out")


def test_not_a_number_is_no_match():
    row = Row(1, 2, "", "logits", float("nan"), 1.0, 1e-6, 1e-5)
    assert not Report("onnx", "model.onnx", 1e-4, (row,)).ok


def test_an_existing_folder_is_refused_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    graph = peftc.apply("lora", zoo.captured("bert", "base", layers=1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FACTS).write_text("keep")
    with pytest.raises(PeftcError, match=r"error\[E306\]"):
        peftc.export(graph, "onnx", tmp_path / "out")

    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("peftc.backends.onnx.strip", fail)
    with pytest.raises(KeyboardInterrupt):
        peftc.export(graph, "onnx", tmp_path / "out", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / FACTS).read_text() == "keep"


def test_unknown_targets_and_opsets_are_refused(tmp_path):
    graph = peftc.apply("lora", zoo.captured("bert", "base"))
    with pytest.raises(PeftcError) as caught:
        peftc.export(graph, "onxx", tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["error[E401]: cannot export to onxx", "  = help: did you mean `onnx`?"]
    assert lines[2] == f"  = help: targets: {', '.join(backends())}"
    with pytest.raises(PeftcError, match=r"E407.*opset 23"):
        peftc.export(graph, "onnx", tmp_path / "out", opset=23)


def test_the_runners_import_neither_peftc_nor_transformers():
    for one in backends().values():
        text = one.runner.read_text()
        assert "import peftc" not in text
        assert one.kind in ("peft", "hf") or "transformers" not in text  # these are its models


def test_the_export_says_what_it_takes(tmp_path):
    graph = peftc.apply("prompt", zoo.captured("t5", "seq2seq-lm", layers=1), set={"tokens": 4})
    peftc.export(graph, "torchscript", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "peftc.export.json").read_text())
    assert [i["name"] for i in facts["inputs"]] == [
        "input_ids",
        "attention_mask",
        "decoder_input_ids",
        "decoder_attention_mask",
    ]
    assert facts["outputs"][0] == {"name": "logits", "dims": ["batch", "decoder_sequence", 93]}
    module = torch.jit.load(str(tmp_path / "out" / "model.pt"))
    names = {n for n, _ in module.named_buffers()}
    assert "peft.prompt.encoder_embed_out.embedding" in names
