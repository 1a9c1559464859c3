"""Artifacts: the same graph again, bit for bit, and every wrong file refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from sealing import reseal

import peftc
from peftc.artifact.lock import LOCK, TENSORS
from peftc.capture.listing import listing
from peftc.ground.diagnostics import PeftcError

FAMILY = ("bert", "sequence-classification")


@pytest.fixture
def artifact(tmp_path):
    """(graph, folder): houlsby with random pieces, saved."""
    graph = peftc.apply("houlsby", zoo.captured(*FAMILY))
    for parameter in peftc.trainable(graph).values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return graph, peftc.save(graph, tmp_path / "out")


def refusal(folder, model=None) -> str:
    with pytest.raises(PeftcError) as caught:
        peftc.load(folder, model if model is not None else zoo.captured(*FAMILY))
    return str(caught.value).replace(str(folder), "out")


def test_loading_gives_the_same_graph_and_outputs(artifact):
    graph, folder = artifact
    again = peftc.load(folder, zoo.model(*FAMILY))
    assert listing(again) == listing(graph)
    inputs = zoo.inputs(zoo.model(*FAMILY), 4, 9)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, graph(**inputs).logits)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == set(
        peftc.trainable(graph)
    )


def test_the_folder_holds_only_what_was_trained(artifact):
    graph, folder = artifact
    assert {p.name for p in folder.iterdir()} == {
        "spec.yaml",
        TENSORS,
        LOCK,
        "graph.txt",
        "graph.html",
        "README.md",
    }
    assert set(load_file(folder / TENSORS)) == set(peftc.trainable(graph))
    lock = json.loads((folder / LOCK).read_text())
    frozen = {n for n, p in graph.named_parameters() if not p.requires_grad}
    assert set(lock["model"]["weights"]) == frozen
    sites = lock["plan"]["insertions"][0]["sites"]
    assert sites[0]["module"].startswith("bert.encoder.layer.0.attention.output")


def test_an_existing_folder_is_refused_and_left_alone(artifact):
    graph, folder = artifact
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(PeftcError, match=r"error\[E306\].*exists and is not empty"):
        peftc.save(graph, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    peftc.save(graph, folder, force=True)
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_another_base_is_refused(artifact):
    _, folder = artifact
    text = refusal(folder, zoo.build(*FAMILY, seed=5))
    assert text.startswith("error[E301]: out belongs to another base model: ")
    assert "bert.embeddings.word_embeddings.weight" in text


def test_a_damaged_file_is_refused(artifact):
    _, folder = artifact
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[:-100])
    text = refusal(folder)
    assert text.startswith(f"error[E303]: out/{TENSORS} is damaged: sha256 is ")
    assert f"the file has {len(data) - 100:,} bytes" in text


def test_a_missing_file_is_refused(artifact):
    _, folder = artifact
    (folder / TENSORS).unlink()
    assert refusal(folder).startswith(f"error[E303]: out/{TENSORS} is missing")


def test_tensors_of_another_graph_are_refused(artifact):
    _, folder = artifact
    tensors = load_file(folder / TENSORS)
    name = "peft.after_attn.layer0_attn_out.down.weight"
    tensors["peft.other.down"] = tensors.pop(name)
    save_file(tensors, folder / TENSORS)
    reseal(folder)
    assert "error[E302]" in refusal(folder)
    reseal(
        folder,
        lambda lock: lock["tensors"].update({"peft.other.down": lock["tensors"].pop(name)}),
    )
    text = refusal(folder)
    assert "error[E302]" in text
    assert "1 missing, 1 unexpected" in text
    assert f"missing: {name}" in text


def test_a_tensor_of_another_shape_is_refused(artifact):
    _, folder = artifact
    tensors = load_file(folder / TENSORS)
    name = "peft.after_attn.layer0_attn_out.down.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / TENSORS)
    reseal(folder)
    assert f"E322]: out/{TENSORS} is not what was saved: 1 of" in refusal(folder)
    reseal(folder, lambda lock: lock["tensors"][name].update(shape=[47, 24]))
    assert f"error[E104]: checkpoint tensor {name} is [47, 24], the spec makes [48, 24]" in refusal(
        folder
    )


def test_a_head_of_another_size_is_not_laid_to_the_spec(tmp_path):
    spec = {"peftc": 1, "name": "n", "insert": [], "unfreeze": [{"role": "head"}]}
    folder = peftc.save(peftc.apply(spec, zoo.captured(*FAMILY)), tmp_path / "out")
    config = copy.deepcopy(zoo.model(*FAMILY).config)
    config.num_labels = 3
    model = type(zoo.model(*FAMILY))(config)
    model.load_state_dict(
        {n: p for n, p in zoo.model(*FAMILY).state_dict().items() if "classifier" not in n},
        strict=False,
    )
    text = refusal(folder, model.eval())
    assert "E104]: checkpoint tensor classifier.weight is [5, 24], the model has [3, 24]" in text
    assert "give a model with as many labels" in text


def test_a_folder_that_is_no_artifact_is_refused(tmp_path):
    assert "error[E308]" in refusal(tmp_path)
    (tmp_path / LOCK).write_text("{not json")
    assert "error[E303]" in refusal(tmp_path)


def test_a_base_that_was_made_in_python_has_to_be_given(artifact):
    _, folder = artifact
    with pytest.raises(PeftcError, match=r"error\[E309\]"):
        peftc.load(folder)


def test_a_failing_save_leaves_nothing(artifact, tmp_path, monkeypatch):
    graph, _ = artifact

    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("peftc.artifact.folder.card", fail)
    with pytest.raises(KeyboardInterrupt):
        peftc.save(graph, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
