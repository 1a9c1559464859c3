"""What an export merges is what the spec says, for one task of several too, and is told so."""

from __future__ import annotations

import pytest
import task_specs
import zoo

import peftc
from peftc.backends import backend
from peftc.backends.export import merged
from peftc.cli.verbs.export import folded
from peftc.rewrite.applied import APPLIED

LORA = {"low_rank": {"rank": 2}}
TWO = [
    {"id": "l", "at": "attn.q", "delta": LORA},
    {"id": "v", "at": "attn.q", "delta": "vector"},
    {"id": "s", "at": "attn.v", "delta": LORA, "share": "all_tasks"},
]


@pytest.fixture
def graph():
    """Three tasks with pieces of their own at one site, and one piece that all share."""
    written = {**task_specs.spec(*TWO), "export": {"fold": ["l", "s"]}}
    return task_specs.applied(written, layers=1)


def test_one_task_of_many_is_folded_as_the_spec_says(graph, tmp_path):
    exported = peftc.export(graph, "onnx", tmp_path / "one", task="topic")
    assert exported.facts["merge"] == ["l", "s"]
    assert exported.facts["merged"] == ["l", "s"]
    assert {n.split(".")[1] for n in exported.facts["peft"]} == {"v", "tasks"}
    assert exported.notes == ()
    assert folded(exported.facts) == [
        "merged into the weights: l, s",
        "apart: v at 1 of 1 sites: the spec does not name it in `export.fold`",
    ]
    assert peftc.verify(graph, exported).ok


def test_a_bank_stays_apart_and_that_is_said(graph, tmp_path):
    exported = peftc.export(graph, "torchscript", tmp_path / "all")
    assert exported.facts["merged"] == ["s"]
    assert [(n.code, n.message) for n in exported.notes] == [
        ("W403", "`l` stays apart at 1 of 1 sites: each task has a piece of its own there")
    ]
    assert peftc.verify(graph, exported).ok


def test_the_caller_and_the_format_decide_before_the_spec(graph):
    assert merged(graph, backend("onnx"), "auto") == ["l", "s"]
    assert merged(graph, backend("onnx"), "unmerged") is False
    assert merged(graph, backend("hf"), "auto") is True
    assert merged(graph, backend("peft"), "auto") is False
    plain = peftc.apply("lora", zoo.captured("bert", "base", 1))
    del plain.meta[APPLIED]
    assert merged(plain, backend("onnx"), "auto") is True
