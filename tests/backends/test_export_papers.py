"""What the papers' parts become in exported files: run by their runtime, at other sizes."""

from __future__ import annotations

import pytest
import reference
import zoo

import peftc

ENSEMBLE = {"at": "embed.out", "delta": {"prompt": {"tokens": 3, "ensemble": 3}}}
MEAN = {"at": "embed.out", "delta": {"prompt": {"tokens": 3, "ensemble": 2, "vote": "mean"}}}


def exported(insertion, family, kind, folder):
    """The graph, with random pieces, and the report on its file."""
    spec = {"peftc": 1, "name": "s", "insert": [{"id": "s", **insertion}]}
    graph = peftc.apply(spec, zoo.captured(*family))
    reference.randomise(graph, std=1.0)
    peftc.export(graph, kind, folder)
    return graph, peftc.verify(graph, folder)


@pytest.mark.parametrize(
    ("insertion", "family", "kind"),
    [
        (ENSEMBLE, ("bert", "sequence-classification"), "onnx"),
        (ENSEMBLE, ("bert", "token-classification"), "torchscript"),
        (MEAN, ("t5", "seq2seq-lm"), "onnx"),
    ],
)
def test_an_ensemble_votes_inside_the_file(insertion, family, kind, tmp_path):
    graph, report = exported(insertion, family, kind, tmp_path / "out")
    assert report.ok, report
    assert {r.batch for r in report.rows} >= {1, 4}
    rows = graph.get_parameter(next(n for n, _ in graph.peft_parameters()))
    assert rows.shape[0] == insertion["delta"]["prompt"]["ensemble"]
