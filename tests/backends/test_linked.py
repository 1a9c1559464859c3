"""ONNX over the base's own files: no weight is loaded, no byte of the base is copied."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys

import linking
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import zoo
from safetensors.numpy import load_file
from torch._subclasses.fake_tensor import FakeTensor

import peftc
from peftc.capture.listing import listing
from peftc.ground.diagnostics import PeftcError
from peftc.runtime import DeploymentError, Session

CUDA = "CUDAExecutionProvider"
CASES = [
    ("llama", "causal-lm", "lora", True),  # shards
    ("gpt2", "causal-lm", "houlsby", False),  # tied, and linears kept transposed
    ("t5", "seq2seq-lm", "prefix", False),  # tied three times
    ("bert", "base", "prompt", False),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[2]}")
def linked(request):
    """(graph with weights, graph without, the folder of its linked export)."""
    graph, _ = linking.artifact(*request.param)
    thin = linking.weightless(*request.param)
    return graph, thin, linking.linked(*request.param)


def places(folder):
    """Initializer -> (file, offset, length) of those that are outside the graph file."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {
        i.name: {e.key: e.value for e in i.external_data}
        for i in model.graph.initializer
        if i.external_data
    }


def test_the_graph_is_that_of_the_real_model_and_holds_no_weight(linked):
    graph, thin, _ = linked
    assert listing(thin) == listing(graph)
    for name, parameter in thin.named_parameters():
        assert isinstance(parameter, FakeTensor) != parameter.requires_grad, name


def test_the_exported_file_equals_the_graph_with_weights_and_the_one_without(linked):
    graph, thin, exported = linked
    for one in (graph, thin):
        report = peftc.verify(one, exported.folder)
        assert len({(r.batch, r.length) for r in report.rows}) >= 4
        assert any(r.padded for r in report.rows)
        assert report.ok, report


def test_frozen_weights_are_the_bases_own_bytes_and_pieces_are_beside(linked):
    _, thin, exported = linked
    stored = thin.meta["peftc.stored"]
    found = places(exported.folder)
    for name, parameter in thin.named_parameters():
        if name.startswith("peft."):
            continue
        if parameter.requires_grad:  # the spec unfreezes it
            assert found[name]["location"] == "peft.safetensors"
        else:
            place = stored.get(name)
            assert found[name] == {
                "location": place.file.name,
                "offset": str(place.offset),
                "length": str(place.length),
            }, name
    for path in stored.files:
        assert (exported.folder / path.name).samefile(path)
    assert exported.facts["weights"] == "link"
    own = load_file(exported.folder / "peft.safetensors")
    assert {n for n in own if n.startswith("peft.")} == set(exported.facts["peft"])
    assert exported.facts["peft"]
    assert (exported.folder / "model.onnx").stat().st_size < 250_000


def test_merging_writes_the_weights_that_change_and_no_other():
    _, folder = linking.artifact(*CASES[0])
    thin = linking.weightless(*CASES[0])
    out = linking.home() / "merged"
    exported = peftc.export(thin, "onnx", out, weights="link")
    assert peftc.verify(linking.artifact(*CASES[0])[0], out).ok
    assert exported.facts["peft"] == []
    changed = {n for n in load_file(out / "peft.safetensors") if n.endswith("proj.weight")}
    assert changed == {
        f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(1) for p in ("q", "v")
    }
    assert folder.is_dir()


def test_a_copy_is_one_folder_of_its_own_with_the_names_of_the_state_dict(tmp_path):
    case = CASES[1]
    thin = linking.weightless(*case)
    exported = peftc.export(thin, "onnx", tmp_path / "out", weights="copy")
    assert set(exported.files) == {
        "model.onnx", "model.safetensors", "peft.safetensors", "runtime.py", "peftc.export.json",
    }  # fmt: skip
    base = load_file(tmp_path / "out" / "model.safetensors")
    weights = linking.model(*case[:2]).state_dict()
    frozen = {n for n, p in thin.named_parameters() if not p.requires_grad}
    assert frozen <= base.keys()
    for name in frozen:
        assert np.array_equal(base[name], weights[name].numpy()), name
    assert (tmp_path / "out" / "model.safetensors").stat().st_nlink == 1
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
    report = peftc.verify(linking.artifact(*case)[0], tmp_path / "out")
    assert report.ok, report


def test_half_precision_and_the_older_opset(tmp_path):
    model = zoo.build("bert", "base", layers=1).half()
    model.save_pretrained(tmp_path / "base")
    graph = peftc.apply("lora", model)
    graph.meta["peftc.applied"].reference = str(tmp_path / "base")
    exported = peftc.export(graph, "onnx", tmp_path / "out", weights="link", opset=20)
    found = places(exported.folder)
    assert found["encoder.layer.0.attention.self.key.weight"]["location"] == "model.safetensors"
    assert found["encoder.layer.0.attention.self.query.weight"]["location"] == "peft.safetensors"
    session = Session(exported.folder)
    inputs = {n: v.numpy() for n, v in zoo.inputs(model, 3, 9).items()}
    with torch.no_grad():
        wanted = model(**zoo.inputs(model, 3, 9)).last_hidden_state
    got = session(**inputs)["last_hidden_state"]
    assert got.dtype == np.float16
    assert np.abs(got.astype(np.float32) - wanted.float().numpy()).max() < 2e-2


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import runtime
assert runtime.__file__.startswith(sys.argv[1])
session = runtime.Session(sys.argv[1], check="full")
ids = np.arange(10).reshape(2, 5) + 3
given = {i["name"]: ids for i in session.inputs if i["name"].endswith("input_ids")}
outputs = session(**given, attention_mask=np.ones_like(ids))
print({n: list(v.shape) for n, v in outputs.items()})
heavy = ("torch", "transformers", "peftc", "pydantic", "onnx")
print([m for m in heavy if m in sys.modules])
"""


def test_the_folder_runs_by_its_own_runtime_file_alone(linked):
    _, thin, exported = linked
    command = [sys.executable, "-I", "-c", SCRIPT, str(exported.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shapes, heavy = done.stdout.splitlines()
    output = thin.signature.outputs[0]
    assert f"'{output.name}': [2, 5, {output.dims[-1]}]" in shapes
    assert heavy == "[]"


def test_importing_the_runtime_brings_nothing_heavy():
    code = (
        "import sys, peftc.runtime as r; "
        "print([m for m in ('torch', 'transformers', 'pydantic', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def deployed(tmp_path):
    """A copy of the linked BERT export, whose files may be damaged."""
    return shutil.copytree(linking.linked(*CASES[3]).folder, tmp_path / "deployed")


def refused(folder, **options) -> str:
    with pytest.raises(DeploymentError) as caught:
        Session(folder, **options)
    return str(caught.value).replace(str(folder), "out")


def test_a_truncated_weights_file_is_refused(deployed):
    path = deployed / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(deployed) == (
        f"error[E303]: out/model.safetensors is damaged: it has {size - 100:,} bytes, "
        f"peftc.export.json says {size:,}\n"
        "  = help: copy it again: a copy that stopped early looks like this"
    )
    path.unlink()
    assert refused(deployed).startswith("error[E303]: out/model.safetensors is missing")


def test_a_base_of_the_same_shapes_and_other_numbers_is_refused(deployed, tmp_path):
    zoo.build("bert", "base", seed=5, layers=1).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", deployed / "model.safetensors")
    text = refused(deployed)
    assert text.startswith("error[E303]: out/model.safetensors is not the file that was exported: ")
    assert "a base that was trained further needs an export of its own" in text


def test_one_changed_bit_is_found_by_the_full_check(deployed):
    path = deployed / "peft.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "is not the file that was exported" in refused(deployed, check="full")


def test_wrong_inputs_are_refused_by_name(deployed):
    session = Session(deployed)
    ids = np.arange(10).reshape(2, 5)
    whole = session(input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=0 * ids)
    short = session(input_ids=ids.astype(np.int32))
    assert np.array_equal(whole["last_hidden_state"], short["last_hidden_state"])
    for given, text in [
        ({"inputs": ids}, "inputs are unknown: inputs\n  = help: it takes: input_ids, "),
        ({}, "inputs are missing: input_ids"),
        ({"input_ids": ids.astype(float)}, "input_ids is float64, the model takes int64"),
        ({"input_ids": ids[0]}, "input_ids is of shape [5], the model takes [batch, sequence]"),
        (
            {"input_ids": ids, "attention_mask": np.ones((3, 5), np.int64)},
            "batch is 3 in attention_mask and 2 in input_ids",
        ),
    ]:
        with pytest.raises(DeploymentError) as caught:
            session(**given)
        assert str(caught.value).startswith(f"error[E204]: {text}")


def test_a_wrong_folder_or_argument_is_refused(deployed, tmp_path, monkeypatch):
    assert refused(tmp_path).startswith("error[E308]: out is no export")
    assert refused(deployed, check="some") == (
        "error[E409]: check: some\n  = help: one of: fast, full, none"
    )
    assert "error[E409]: no provider Abacus" in refused(deployed, providers=["Abacus"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    # It falls back to the CPU where CUDA's libraries are missing.
    cpu = functools.partial(onnxruntime.InferenceSession, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, providers: cpu(*a))
    for given in (CUDA, (CUDA, {"use_tf32": "1"})):
        assert refused(deployed, providers=[given]) == (
            f"error[E409]: {CUDA} does not start here\n"
            "  = help: its libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    monkeypatch.undo()
    facts = json.loads((deployed / "peftc.export.json").read_text())
    facts["inputs"].pop()
    (deployed / "peftc.export.json").write_text(json.dumps(facts))
    assert "takes" in refused(deployed)
    (deployed / "model.onnx").write_bytes(b"no graph")
    assert refused(deployed, check="none").startswith("error[E406]: ONNX Runtime ")


def test_a_truncated_base_is_refused_before_anything_is_written(tmp_path):
    _, folder = linking.artifact(*CASES[3])
    base = shutil.copytree(linking.base("bert", "base", False), tmp_path / "base")
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(PeftcError, match=r"error\[E303\].*is damaged: it has .* its header says"):
        peftc.load(folder, base, weights=False)


def test_another_base_is_refused_without_loading_it(tmp_path):
    _, folder = linking.artifact(*CASES[3])
    zoo.build("bert", "base", seed=5, layers=1).save_pretrained(tmp_path / "other")
    with pytest.raises(PeftcError, match=r"error\[E301\].*belongs to another base model") as caught:
        peftc.load(folder, tmp_path / "other", weights=False)
    assert "embeddings.word_embeddings.weight" in str(caught.value)


def test_a_base_in_memory_alone_cannot_be_linked(tmp_path):
    graph = peftc.apply("lora", zoo.captured("bert", "base"))
    with pytest.raises(PeftcError, match=r"error\[E410\]: there is no file to link"):
        peftc.export(graph, "onnx", tmp_path / "out", weights="link")
    with pytest.raises(PeftcError, match=r"error\[E409\]: torchscript keeps its weights"):
        peftc.export(graph, "torchscript", tmp_path / "out", weights="link")
