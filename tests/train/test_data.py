"""Rows: each task's form, and every wrong row with its line."""

from __future__ import annotations

import json

import pytest
import zoo
from transformers import AutoTokenizer

from peftc.diagnostics import PeftcError
from peftc.train import read_rows
from peftc.train.collate import Collator


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    return AutoTokenizer.from_pretrained(model_folder)


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_sequences_and_pairs(tmp_path, tokenizer):
    graph = zoo.captured("bert", "sequence-classification")
    path = written(
        tmp_path,
        {"text": "the cat sat", "label": 2},
        {"text": "a dog", "label": "LABEL_4"},
    )
    rows = read_rows(path, graph, tokenizer)
    assert [r["labels"] for r in rows.examples] == [2, 4]
    batch = Collator(graph, 0)(rows.examples)
    assert batch["input_ids"].tolist() == [[2, 4, 6, 8, 3], [2, 5, 7, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_words_with_tags(tmp_path, tokenizer):
    graph = zoo.captured("bert", "token-classification")
    path = written(
        tmp_path, {"tokens": ["the", "cat"], "tags": [1, 3]}, {"tokens": ["a"], "tags": [0]}
    )
    batch = Collator(graph, 0)(read_rows(path, graph, tokenizer).examples)
    assert batch["labels"].tolist() == [[-100, 1, 3, -100], [-100, 0, -100, -100]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("3", "a row is a mapping"),
        ({"text": "a"}, "missing label"),
        ({"text": "a", "label": 0, "lable": 1}, "unknown lable"),
        ({"text": 3, "label": 0}, "`text` is text"),
        ({"text": "a", "label": 9}, "`9` is no label"),
        ({"text": "a", "label": True}, "`True` is no label"),
        ({"text": "a", "label": "good"}, "labels: LABEL_0, LABEL_1"),
    ],
)
def test_wrong_rows_are_refused_with_their_line(tmp_path, tokenizer, row, message):
    graph = zoo.captured("bert", "sequence-classification")
    path = written(tmp_path, {"text": "a", "label": 1}, row)
    with pytest.raises(PeftcError) as caught:
        read_rows(path, graph, tokenizer)
    text = str(caught.value)
    assert "error[E082]" in text
    assert message in text
    assert f"{path}:2:1" in text


def test_no_rows_and_no_file(tmp_path, tokenizer):
    graph = zoo.captured("bert", "sequence-classification")
    with pytest.raises(PeftcError, match="E081"):
        read_rows(tmp_path / "none.jsonl", graph, tokenizer)
    with pytest.raises(PeftcError, match="has no rows"):
        read_rows(written(tmp_path, ""), graph, tokenizer)


def test_a_model_without_a_head_has_no_task(tmp_path, tokenizer):
    with pytest.raises(PeftcError, match="E106"):
        read_rows(written(tmp_path, ""), zoo.captured("bert", "base"), tokenizer)
