"""The heads of tasks: equal to those of transformers, and the models that cannot have them."""

# Specs are plain dicts, and what a graph gives and holds has names that no type knows.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import pytest
import reference
import torch
import zoo
from task_specs import PREFIX, SHAPES
from tolerances import PARITY
from torch.nn.functional import linear
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertModel,
)

import peftc
from peftc.capture import capture
from peftc.ground.diagnostics import PeftcError

FACTORIES = {
    "token_classification": AutoModelForTokenClassification,
    "sequence_classification": AutoModelForSequenceClassification,
    "question_answering": AutoModelForQuestionAnswering,
}


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert", h) for h in FACTORIES]
    + [("gpt2", "sequence_classification"), ("llama", "sequence_classification")],
)
def test_one_task_is_transformers_own_model_of_that_task(kind, head):
    """Outputs, loss and gradients of the head, with the same weights and padded rows."""
    labels = {} if head == "question_answering" else {"labels": 5}
    graph = peftc.apply(
        {"peftc": 1, "name": "n", "tasks": {"one": {"head": {head: labels}}}, "insert": []},
        zoo.captured(kind, "base"),
    )
    reference.randomise(graph)
    config = zoo.CONFIGS[kind]()
    config.use_cache, config.num_labels = False, labels.get("labels", 2)
    theirs = FACTORIES[head].from_config(config).eval()
    theirs.base_model.load_state_dict(zoo.model(kind).state_dict(), strict=False)
    name = next(n for n in ("classifier", "qa_outputs", "score") if hasattr(theirs, n))
    ours, their_head = graph.get_submodule("peft.tasks.one.linear"), getattr(theirs, name)
    their_head.weight.data.copy_(ours.weight)
    if their_head.bias is None:
        ours.bias.data.zero_()
    else:
        their_head.bias.data.copy_(ours.bias)
    for batch, length in SHAPES:
        inputs = zoo.inputs(zoo.model(kind), batch, length)
        if kind != "bert":  # theirs finds the last token by the padding's id
            inputs["input_ids"][inputs["attention_mask"] == 0] = 0
        ones = torch.arange(batch) % 5
        answer = {
            "token_classification": {"labels": inputs["input_ids"] % 5},
            "sequence_classification": {"labels": ones},
            "question_answering": {"start_positions": ones, "end_positions": ones + 1},
        }[head]
        theirs.zero_grad()
        graph.zero_grad()
        want, got = theirs(**inputs, **answer), graph(**inputs, **answer)
        assert list(got) == list(want)
        for key, value in got.items():
            torch.testing.assert_close(value, want[key], **PARITY[value.dtype])
        want.loss.backward()
        got.loss.backward()
        torch.testing.assert_close(
            ours.weight.grad, their_head.weight.grad, **PARITY[torch.float32]
        )


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_ways_to_make_one_vector_of_a_text(pool):
    head = {"sequence_classification": {"labels": 3, "pool": pool}}
    graph = peftc.apply(
        {"peftc": 1, "name": "n", "tasks": {"t": {"head": head}}, "insert": []},
        zoo.captured("bert", "base"),
    )
    reference.randomise(graph)
    inputs = zoo.inputs(zoo.model("bert"), 4, 9)
    for side in ("right", "left"):
        if side == "left":
            inputs = {n: v.flip(1) for n, v in inputs.items()}
        with torch.no_grad():
            states = zoo.model("bert")(**inputs).last_hidden_state
            got = graph(**inputs).logits
        real = [row[m.bool()] for row, m in zip(states, inputs["attention_mask"], strict=True)]
        vectors = {
            "first": states[:, 0],
            "mean": torch.stack([r.mean(0) for r in real]),
            "last": torch.stack([r[-1] for r in real]),
        }[pool]
        layer = graph.get_submodule("peft.tasks.t.linear")
        want = linear(vectors, layer.weight, layer.bias)
        torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_a_text_is_read_where_the_model_has_seen_all_of_it():
    """The pooler where there is one, else the first token, or the last of a causal model."""
    found = {}
    small = zoo.CONFIGS["bert"]()
    small.num_hidden_layers = 1
    without = BertModel(small, add_pooling_layer=False).eval()
    for name, program in (
        ("bert", zoo.captured("bert", "base")),
        ("gpt2", zoo.captured("gpt2", "base")),
        ("llama", zoo.captured("llama", "base")),
        ("no pooler", capture(without)),
    ):
        plan = peftc.plan(PREFIX, program)
        found[name] = next(t["reads"] for t in plan.to_json()["tasks"] if t["name"] == "topic")
    assert found == {
        "bert": "pooler_output",
        "gpt2": "last token",
        "llama": "last token",
        "no pooler": "first token",
    }


def refusal(written, program) -> str:
    with pytest.raises(PeftcError) as caught:
        peftc.plan(written, program)
    return str(caught.value)


def test_models_that_cannot_have_heads_are_refused(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        "peftc: 1\nname: n\ntasks:\n  ner: {head: {token_classification: {labels: 9}}}\n"
    )
    text = refusal(path, zoo.captured("bert", "token-classification")).replace(str(path), "m.yaml")
    assert text == (
        "error[E106]: task `ner` brings a head, but BertForTokenClassification has one already\n"
        " --> m.yaml:4:8\n"
        "  |\n"
        "4 |   ner: {head: {token_classification: {labels: 9}}}\n"
        "  |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "  = help: load the base model: AutoModel in Python, --task feature-extraction here"
    )
    text = refusal(path, zoo.captured("t5", "seq2seq-lm"))
    assert "task `ner` needs an encoder or a decoder, and this model is both" in text
    path.write_text(
        "peftc: 1\nname: n\ntasks:\n"
        "  train: {head: {sequence_classification: {labels: 9, pool: pooler}}}\n"
    )
    text = refusal(path, zoo.captured("gpt2", "base"))
    assert "a task cannot be called `train`: modules have that name" in text
    path.write_text(path.read_text().replace("train", "topic"))
    text = refusal(path, zoo.captured("gpt2", "base"))
    assert "error[E106]: task `topic` reads a pooler; GPT2Model has none" in text
