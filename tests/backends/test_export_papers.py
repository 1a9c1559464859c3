"""What the papers' parts become in exported files: run by their runtime, at other sizes."""

from __future__ import annotations

import peft_cases
import pytest
import reference
import zoo

import peftc
from peftc.backends.cases import cases_for

ENSEMBLE = {"at": "embed.out", "delta": {"prompt": {"tokens": 3, "ensemble": 3}}}
MEAN = {"at": "embed.out", "delta": {"prompt": {"tokens": 3, "ensemble": 2, "vote": "mean"}}}
STACKS = ("encoder", "decoder")
TOKEN = 38
INFIX = {"at": "attn.kv", "delta": {"prefix": {"tokens": 3, "before": TOKEN}}}


def exported(insertion, family, kind, folder):
    """The graph, with random pieces, and the report on its file."""
    spec = {"peftc": 1, "name": "s", "insert": [{"id": "s", **insertion}]}
    graph = peftc.apply(spec, zoo.captured(*family, layers=1))
    reference.randomise(graph, std=1.0)
    peftc.export(graph, kind, folder)
    return graph, peftc.verify(graph, folder)


@pytest.mark.parametrize(
    ("insertion", "family", "kind"),
    [
        (ENSEMBLE, ("bert", "sequence-classification"), "onnx"),
        (ENSEMBLE, ("bert", "token-classification"), "torchscript"),
        (MEAN, ("gpt2", "causal-lm"), "torchscript"),
    ],
)
def test_an_ensemble_votes_inside_the_file(insertion, family, kind, tmp_path):
    graph, report = exported(insertion, family, kind, tmp_path / "out")
    assert report.ok, report
    assert {r.batch for r in report.rows} >= {1, 4}
    rows = graph.get_parameter(next(n for n, _ in graph.peft_parameters()))
    assert rows.shape[0] == insertion["delta"]["prompt"]["ensemble"]


def test_an_infix_is_looked_for_inside_the_file(tmp_path):
    """Among the rows that the file is run with are some with the token and some without."""
    graph, report = exported(INFIX, ("llama", "causal-lm"), "onnx", tmp_path / "out")
    assert report.ok, report
    rows = [(c.values["input_ids"] == TOKEN).any(1) for c in cases_for(graph)[0]]
    found = {value for found in rows for value in found.tolist()}
    assert found == {True, False}


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_classifier_with_two_stacks_takes_the_text_alone(kind, tmp_path):
    """A prompt before each stack, and the head at the last end mark, in one file of two inputs."""
    delta = {"prompt": {"tokens": 3}}
    insert = [{"id": s, "at": "embed.out", "stack": s, "delta": delta} for s in STACKS]
    spec = {"peftc": 1, "name": "s", "insert": insert}
    graph = peftc.apply(spec, peft_cases.captured("bart", "SEQ_CLS"))
    reference.randomise(graph, std=1.0)
    peftc.export(graph, kind, tmp_path / "out")
    report = peftc.verify(graph, tmp_path / "out")
    assert report.ok, report
    assert [i.name for i in graph.signature.inputs] == ["input_ids", "attention_mask"]
    assert {r.batch for r in report.rows} >= {1, 4}
