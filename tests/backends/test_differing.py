"""A file that differs is told by the node at which it leaves the graph."""

from __future__ import annotations

import linking
import numpy as np
import onnx
import pytest
import reference
import torch
import zoo

import peftc
from peftc.backends.differing import distance, first_difference
from peftc.backends.export import read_export
from peftc.passes.base import set_parameter

CASE = ("bert", "base", "prompt", False)


@pytest.fixture
def lora():
    """A graph with random updates."""
    return linking.artifact("bert", "base", "lora", False)[0].clone(pieces=True)


def values(graph):
    """Inputs by name, with padding."""
    given = zoo.inputs(linking.model("bert", "base"), 2, 7)
    return {i.name: given[i.name] for i in graph.signature.inputs}


def test_another_weight_in_onnx_is_named_with_the_node_that_reads_it(lora, tmp_path):
    peftc.export(lora, "onnx", tmp_path / "out", fold="unmerged")
    assert peftc.verify(lora, tmp_path / "out").first == ""
    name = "peft.qv.layer0_attn_v.B"
    with torch.no_grad():
        lora.get_parameter(name).add_(0.5)
    report = peftc.verify(lora, tmp_path / "out")
    assert not report.ok
    assert f"({name})" in report.first
    assert f" reads another {name}: add_5 differs by " in report.first
    assert report.to_json()["first"] == report.first


@pytest.mark.parametrize("fold", ["unmerged", "none"])
def test_values_in_onnx_have_the_names_of_their_nodes(fold, tmp_path):
    """The exporter numbers sums anew: its `add_10` is none of the graph's, or another one."""
    graph = peftc.apply("lora", zoo.captured("bert"), set={"rank": 2})
    reference.randomise(graph)
    peftc.export(graph, "onnx", tmp_path / "out", fold=fold)
    given = zoo.inputs(zoo.model("bert", "base"), 2, 7)
    feed = {i.name: given[i.name] for i in graph.signature.inputs}
    assert first_difference(graph, read_export(tmp_path / "out"), feed, 1e-4) == ""
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    names = [o for node in model.graph.node for o in node.output]
    assert len(names) == len(set(names))
    assert {f"add_{k}" for k in range(4, 16)} <= set(names)


def test_another_operation_in_onnx_is_named():
    exported, graph = linking.linked(*CASE), linking.artifact(*CASE)[0]
    path = exported.folder / exported.file
    before = path.read_bytes()
    model = onnx.load(path, load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type in ("Gelu", "Erf"))
    node.op_type, renamed = "Tanh", node.output[0]
    del node.attribute[:]
    try:
        onnx.save(model, path)
        report = peftc.verify(graph, exported)
    finally:
        path.write_bytes(before)
    assert not report.ok
    assert report.first.startswith((f"{renamed} = aten.", "gelu")), report.first
    assert not list(exported.folder.parent.glob(".peftc-probe-*"))


def test_another_weight_in_torchscript_is_named(lora, tmp_path):
    peftc.export(lora, "torchscript", tmp_path / "out", fold="none")
    exported = read_export(tmp_path / "out")
    assert first_difference(lora, exported, values(lora), 1e-4) == ""
    name = "encoder.layer.0.output.dense.weight"
    set_parameter(lora, name, lora.get_parameter(name).detach() * 2)
    text = first_difference(lora, exported, values(lora), 1e-4)
    assert text.endswith(f"reads another {name}")


def test_infinities_and_no_numbers_of_both_are_equal():
    mask = torch.tensor([float("-inf"), float("nan"), 1.0])
    assert distance(mask, mask.clone()) == 0
    assert np.isnan(distance(mask, torch.tensor([float("-inf"), 1.0, 1.0])))
    assert distance(torch.tensor([1.0]), torch.tensor([1.5])) == 0.5
