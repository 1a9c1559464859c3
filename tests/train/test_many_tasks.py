"""Rows of several tasks in one run: each through its own task's pieces, head, loss and metrics."""

from __future__ import annotations

import json

import pytest
import torch
import zoo
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.train import Rows, evaluate, read_rows, train
from peftc.train.collate import Collator
from peftc.train.evaluate import spans
from peftc.train.metrics import answer_scores, class_scores, tag_scores

TAGS = ["O", "B-a", "I-a"]
SPEC = {
    "peftc": 1,
    "name": "many",
    "vars": {"t": 3},
    "tasks": {
        "ner": {"head": {"token_classification": {"labels": TAGS}}, "set": {"t": 2}},
        "topic": {
            "head": {"sequence_classification": {"labels": ["x", "y"], "pool": "mean"}},
            "set": {"t": 5},
        },
        "qa": {"head": "question_answering"},
    },
    "insert": [
        {"id": "own", "at": "attn.kv", "share": "per_task", "delta": {"prefix": {"tokens": "$t"}}},
        {"id": "shared", "at": "attn.kv", "delta": {"prefix": {"tokens": 2}}},
    ],
}
WORDS = [f"w{k}" for k in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(
        models.WordLevel({w: k for k, w in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def graph():
    return peftc.apply(SPEC, zoo.captured("bert", "base"))


def question(text, context, answer=None):
    found = {"text": [answer], "answer_start": [context.index(answer)]} if answer else None
    return {"question": text, "context": context,
            "answers": found or {"text": [], "answer_start": []}}  # fmt: skip


ROWS = {
    "ner": [
        {"tokens": ["w1", "w2", "w3"], "tags": ["B-a", "I-a", "O"]},
        {"tokens": ["w4"], "tags": ["O"]},
    ],
    "topic": [{"text": "w5 w6", "label": "y"}],
    "qa": [question("w7", "w8 w9 w10", "w9 w10"), question("w7", "w8 w9")],
}


def files(folder, rows=None):
    made = {}
    for task, some in (rows or ROWS).items():
        made[task] = folder / f"{task}.jsonl"
        made[task].write_text("\n".join(map(json.dumps, some)))
    return made


def read(folder, graph, tokenizer, rows=None, **options):
    made = files(folder, rows)
    found = [read_rows(p, graph, tokenizer, task=t, **options).examples for t, p in made.items()]
    return Rows([e for some in zip(*found, strict=False) for e in some]
                + [e for some in found for e in some[min(map(len, found)):]])  # fmt: skip


def test_a_mixed_batch_has_each_task_s_labels_in_its_own_rows(tmp_path, graph, tokenizer):
    rows = read(tmp_path, graph, tokenizer)
    batch = Collator(graph, 0)(rows.examples)
    assert batch["task_ids"].tolist() == [0, 1, 2, 0, 2]
    assert batch["labels_ner"].tolist() == [
        [-100, 1, 2, 0, -100, -100, -100],
        [-100] * 7,
        [-100] * 7,
        [-100, 0, -100, -100, -100, -100, -100],
        [-100] * 7,
    ]
    assert batch["labels_topic"].tolist() == [0, 1, 0, 0, 0]
    assert batch["start_positions_qa"].tolist() == [0, 0, 4, 0, 0]
    assert batch["end_positions_qa"].tolist() == [0, 0, 5, 0, 0]
    assert batch["input_ids"][1].tolist() == [2, 9, 10, 3, 0, 0, 0]
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_the_loss_is_the_mean_over_rows_of_each_task_s_own(tmp_path, graph, tokenizer):
    batch = Collator(graph, 0)(read(tmp_path, graph, tokenizer).examples)
    with torch.no_grad():
        output = graph(**batch)
    ner, topic, qa = ([k for k, t in enumerate(batch["task_ids"]) if t == n] for n in range(3))
    labels, scores = batch["labels_ner"][ner], output["logits_ner"][ner]
    want = 2 * cross_entropy(scores[labels != -100], labels[labels != -100])
    want += cross_entropy(output["logits_topic"][topic], batch["labels_topic"][topic])
    for end in ("start", "end"):
        places = batch[f"{end}_positions_qa"][qa]
        want += cross_entropy(output[f"{end}_logits_qa"][qa], places)
    torch.testing.assert_close(output["loss"], want / 5)


def test_a_task_whose_labels_are_all_ignored_adds_nothing(graph):
    rows = [
        {"input_ids": [2, 4, 3], "labels": [-100] * 3, "task": "ner"},
        {"input_ids": [2, 4, 3], "labels": 1, "task": "topic"},
    ]
    with torch.no_grad():
        mixed, alone = (graph(**Collator(graph, 0)(r))["loss"] for r in (rows, rows[1:]))
    torch.testing.assert_close(mixed, alone / 2)


def test_contexts_come_in_windows_that_know_where_the_answer_is(tmp_path, graph, tokenizer):
    context = " ".join(WORDS[:9])
    rows = read(tmp_path, graph, tokenizer, {"qa": [question("w30", context, "w4 w5")]}, length=10)
    found = [tokenizer.decode(e["input_ids"]).split(" [SEP] ")[1] for e in rows.examples]
    assert found == ["w0 w1 w2 w3 w4 w5 [SEP]", "w4 w5 w6 w7 w8 [SEP]"]
    assert [(e["start_positions"], e["end_positions"]) for e in rows.examples] == [(7, 8), (3, 4)]
    assert [e["row"] for e in rows.examples] == [0, 0]
    rows = read(tmp_path, graph, tokenizer, {"qa": [question("w30", context, "w5 w6")]}, length=10)
    assert [(e["start_positions"], e["end_positions"]) for e in rows.examples] == [(0, 0), (4, 5)]


def test_an_answer_is_the_best_span_of_all_windows(tmp_path, graph, tokenizer):
    context = " ".join(WORDS[:9])
    asked = [question("w30", context, "w7"), question("w31", "w1 w2", "w2")]
    rows = read(tmp_path, graph, tokenizer, {"qa": asked}, length=10)
    assert len(rows) == 3
    start, end = torch.zeros(3, 10), torch.zeros(3, 10)
    start[0, 3] = end[0, 4] = 1.0  # w0 w1
    start[1, :6] = -9.0
    start[1, 6], end[1, 5], end[1, 6] = 2.0, 9.0, 1.0  # w7, as w7 w6 is no span
    start[2, 1] = end[2, 1] = 50.0  # the question is no answer
    start[2, 3], end[2, 4] = 1.0, 2.0
    texts, right = spans(rows, [{"start_logits": start, "end_logits": end}])
    assert texts == ["w7", "w1 w2"]
    assert right == [["w7"], ["w2"]]
    assert answer_scores(texts, right) == pytest.approx({"f1": (1 + 2 / 3) / 2, "exact_match": 0.5})
    rows.examples[2]["answers"] = []
    start[2, 0] = 2.5
    assert spans(rows, [{"start_logits": start, "end_logits": end}])[0] == ["w7", "w1 w2"]
    start[2, 0] = 3.5
    texts, right = spans(rows, [{"start_logits": start, "end_logits": end}])
    assert texts == ["w7", ""]
    assert answer_scores(texts, right) == {"f1": 1.0, "exact_match": 1.0}


def test_metrics_are_those_of_entities_classes_and_answers():
    labels = [["B-a", "I-a", "O", "B-a"], ["O", "O"]]
    found = [["B-a", "I-a", "O", "O"], ["B-a", "O"]]
    assert tag_scores(found, labels) == {
        "f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 4 / 6,
    }  # fmt: skip
    classes = {"accuracy": 0.75, "f1": pytest.approx((2 / 3 + 0.8) / 2)}
    assert class_scores(["n", "n", "v", "v"], ["n", "v", "v", "v"]) == classes
    assert tag_scores([["n", "n"], ["v", "v"]], [["n", "v"], ["v", "v"]]) == classes


def toy(count=12):
    """Tasks that the words decide: entities are the pairs w1 w2, and the topic is the first."""
    generator = torch.Generator().manual_seed(0)
    rows = {"ner": [], "topic": [], "qa": []}
    for k in range(count):
        words = [f"w{int(n)}" for n in torch.randint(10, 20, (5,), generator=generator)]
        place = k % 4
        pair = [*words[:place], "w1", "w2", *words[place:]]
        tags = [{"w1": "B-a", "w2": "I-a"}.get(w, "O") for w in pair]
        rows["ner"].append({"tokens": pair, "tags": tags})
        first = "w3" if k % 2 else "w4"
        rows["topic"].append({"text": " ".join([first] * 3 + words[:2]), "label": "xy"[k % 2]})
        rows["qa"].append(question("w5", " ".join(pair), "w1 w2"))
    return rows


@pytest.mark.parametrize("only", [None, "ner"])
def test_every_task_learns_with_its_own_pieces_and_no_other_is_touched(tmp_path, tokenizer, only):
    graph = peftc.apply(SPEC, zoo.captured("bert", "base"))
    rows = read(tmp_path, graph, tokenizer, toy())
    before = {n: p.detach().clone() for n, p in graph.named_parameters()}
    start = evaluate(graph, rows, pad=0)
    chosen = rows if only is None else rows.of(only)
    train(graph, chosen, pad=0, steps=60, batch=6, lr=2e-2)
    end = evaluate(graph, rows, pad=0)
    moved = {n for n, p in graph.named_parameters() if not torch.equal(p, before[n])}
    trained = set(peftc.trainable(graph))
    others = {n for n in trained if {"topic", "qa"} & set(n.split("."))}
    assert moved == (trained if only is None else trained - others)
    assert any("shared" in n for n in moved)
    assert {n: tuple(p.shape)[-2] for n, p in graph.named_parameters() if "own.layer0" in n} == {
        f"peft.own.layer0_attn_kv.{t}.{part}": size
        for t, size in {"ner": 2, "topic": 5, "qa": 3}.items()
        for part in ("key", "value")
    }
    for task, metric in {"ner": "f1", "topic": "accuracy", "qa": "f1"}.items():
        if only in (None, task):
            assert end[f"{task}_loss"] < 0.7 * start[f"{task}_loss"]
            assert end[f"{task}_{metric}"] >= start[f"{task}_{metric}"]
    assert end["score"] == pytest.approx((end["ner_f1"] + end["topic_accuracy"] + end["qa_f1"]) / 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "w1", "context": "w2 w3", "answers": {"text": ["w3"]}}, "`answer_start`"),
        (
            {"question": "w1", "context": "w2", "answers": {"text": ["w2"], "answer_start": [4]}},
            "the context has no `w2` at 4",
        ),
        (
            {"question": "w1", "context": "w2", "answers": {"text": ["w2"], "answer_start": []}},
            "lists of one length",
        ),
        ({"question": "w1", "context": "w2"}, "missing answers"),
        (question(" ".join(WORDS), "w1", "w1"), "leaves its context no room in 16"),
    ],
)
def test_questions_that_cannot_be_read_are_refused(tmp_path, graph, tokenizer, row, message):
    with pytest.raises(PeftcError, match="E082") as caught:
        read(tmp_path, graph, tokenizer, {"qa": [row]}, length=16)
    assert message in str(caught.value)


def test_rows_of_no_task_are_refused(tmp_path, graph, tokenizer):
    with pytest.raises(PeftcError, match="say which"):
        read_rows(files(tmp_path)["ner"], graph, tokenizer)
    with pytest.raises(PeftcError, match="no task `nre`"):
        read_rows(files(tmp_path)["ner"], graph, tokenizer, task="nre")
    with pytest.raises(PeftcError, match="say which"):
        Collator(graph, 0)([{"input_ids": [2, 3], "labels": 1}])
