"""Rows: each task's form, and every wrong row with its line."""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from peftc.ground.diagnostics import PeftcError
from peftc.train import read_rows
from peftc.train.collate import Collator
from peftc.train.lines import json_lines, parsed


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


LINE_ENDS_OF_PYTHON = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_end_at_line_feeds_alone(tmp_path, end, mark):
    texts = [f"the{c}cat" for c in LINE_ENDS_OF_PYTHON]
    made = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(mark + end.join([*made, "", "  ", made[0]]).encode())
    found = [(n, parsed(line)["text"]) for n, line in json_lines(path)]
    assert found == [*enumerate(texts, 1), (len(texts) + 3, texts[0])]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5), st.booleans())
def test_every_text_comes_back_as_it_was(texts, ascii):
    rows = [json.dumps({"text": t}, ensure_ascii=ascii).encode() for t in texts]
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "rows.jsonl")
        path.write_bytes(b"\n".join(rows))
        assert [parsed(line)["text"] for _, line in json_lines(path)] == texts


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"[" * 100_000, "nested a thousand deep"),
        (b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
        (b'{"text": "a", "label": NaN}', "NaN is no number"),
        (b'{"text": "a", "label": -Infinity}', "-Infinity is no number"),
        (b'{"text": "a", "label": 1e999}', "`1e999` is too large a number"),
        (b'{"text": "a", "text": "b", "label": 1}', "`text` is given twice"),
        (b'{"text": "a\\ud800b", "label": 1}', "\\ud800 is half of a character"),
        (b'{"text": "a\\uDC00b", "label": 1}', "\\udc00 is half of a character"),
        (b'{"text": "a\xed\xa0\x80b", "label": 1}', "the byte 0xed, the 12th of the line"),
        (b'{"text": "a\x00b", "label": 1}', "not JSON: Invalid control character"),
        (b'\x00{"text": "a", "label": 1}', "not JSON: Expecting value"),
        (b'\xef\xbb\xbf{"text": "a", "label": 1}', "not JSON: Unexpected UTF-8 BOM"),
        (b'{"text": "a", "label": "' + b"x" * 9000 + b'"}', "xx...` is no label"),
        (b'{"text": "a", "label": 1, "' + b"x" * 9000 + b'": 1}', "unknown xxx"),
    ],
    ids=lambda v: v[:24] if isinstance(v, str) else "",
)
def test_hostile_rows_are_refused_with_their_line(tmp_path, tokenizer, row, message):
    graph = zoo.captured("bert", "sequence-classification")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a", "label": 1}\n' + row + b"\n")
    with pytest.raises(PeftcError) as caught:
        read_rows(path, graph, tokenizer)
    (found,) = caught.value.diagnostics
    assert (found.code, found.span.line) == ("E082", 2)
    assert message in found.message
    assert len(str(found.render())) < 1500


def test_words_that_are_no_texts_and_texts_of_no_tokens(tmp_path, tokenizer):
    graph = zoo.captured("bert", "token-classification")
    path = written(tmp_path, {"tokens": ["the", 3], "tags": [1, 2]})
    with pytest.raises(PeftcError, match="`tokens` are texts"):
        read_rows(path, graph, tokenizer)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    )
    with pytest.raises(PeftcError, match="its text has no tokens"):
        read_rows(written(tmp_path, {"text": ""}), zoo.captured("gpt2", "causal-lm"), bare)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path, tokenizer):
    graph = zoo.captured("bert", "sequence-classification")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(PeftcError, match="E081"):
            read_rows(path, graph, tokenizer)
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "a"}'.encode("utf-16"))
    with pytest.raises(PeftcError, match="is UTF-16 text"):
        read_rows(path, graph, tokenizer)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_text_gives_the_tokens_that_the_whole_gives(tmp_path, tokenizer, side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.truncation_side = side
    graph = zoo.captured("bert", "sequence-classification")
    words = random.Random(0).choices(["the", "cat", "dog", "ran", " " * 300], k=4000)
    text, blanks = " ".join(words), "a" + " " * 50_000 + "dog ran"
    pair = {"text": text, "text_pair": text[::-1], "label": 1}
    path = written(tmp_path, {"text": text, "label": 1}, {"text": blanks, "label": 1}, pair)
    found = read_rows(path, graph, tokenizer, length=10).examples
    whole = [tokenizer(*t, truncation=True, max_length=10)["input_ids"]
             for t in ((text,), (blanks,), (text, text[::-1]))]  # fmt: skip
    assert [e["input_ids"] for e in found] == whole
    tags = [k % 5 for k in range(len(words))]
    path = written(tmp_path, {"tokens": words, "tags": tags})
    (one,) = read_rows(path, zoo.captured("bert", "token-classification"), tokenizer, length=10)
    kept = [k for k, w in enumerate(words) if w.strip()]
    kept = kept[:8] if side == "right" else kept[-8:]
    assert one["labels"] == [-100, *(tags[k] for k in kept), -100]


def test_a_long_row_takes_memory_for_what_is_kept(tmp_path, tokenizer):
    """Python's own memory; the tokenizer's is bounded by the part of the text that it is shown."""
    graph = zoo.captured("bert", "sequence-classification")
    path, seen = tmp_path / "rows.jsonl", []
    with open(path, "w") as file:
        for _ in range(3):
            file.write(json.dumps({"text": "the cat " * 1_250_000, "label": 1}) + "\n")

    class Watched:
        truncation_side = "right"

        def __call__(self, text, **options):
            seen.append(len(text))
            return tokenizer(text, **options)

    tracemalloc.start()
    rows = read_rows(path, graph, Watched())
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(e["input_ids"]) for e in rows.examples] == [128] * 3
    assert max(seen) <= 8192
    assert kept < 1 << 20
    assert peak < 55e6  # one row, as bytes, as text and as a value; not three
