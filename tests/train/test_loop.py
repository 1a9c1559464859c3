"""Training moves what it should and nothing else."""

from __future__ import annotations

import pytest
import torch
import zoo

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.train import Rows, evaluate, train

FAMILIES = [
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("llama", "causal-lm"),
    ("t5", "seq2seq-lm"),
]


def rows(kind: str, task: str, count: int = 12) -> Rows:
    """Examples of different lengths, labels of the task's form."""
    generator = torch.Generator().manual_seed(3)
    examples = []
    for k in range(count):
        length = 4 + k % 5
        ids = torch.randint(4, 90, (length,), generator=generator).tolist()
        labels = {
            "sequence-classification": k % 5,
            "token-classification": [i % 5 for i in ids],
            "causal-lm": ids,
            "seq2seq-lm": ids[:3],
        }[task]
        mask = [1] * length
        examples.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return Rows(examples)


@pytest.mark.parametrize("spec", ["houlsby", "prefix", "prompt", "ptuning2", "lora", "ia3"])
@pytest.mark.parametrize("family", FAMILIES, ids="/".join)
def test_the_base_stays_and_every_peft_tensor_moves(family, spec):
    settings = {"tokens": 3} if spec in ("prefix", "prompt", "ptuning2") else {}
    graph = peftc.apply(spec, zoo.captured(*family), set=settings)
    model = zoo.model(*family)
    before = {n: p.detach().clone() for n, p in graph.named_parameters()}
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = train(graph, rows(*family), pad=0, steps=6, batch=4, lr=1e-2)
    assert result.steps == 6
    trained = peftc.trainable(graph)
    assert {n for n, _ in graph.peft_parameters()} <= set(trained)
    for name, parameter in graph.named_parameters():
        same = torch.equal(parameter, before[name])
        # A key's bias adds the same to every score of a query, so softmax gives it no gradient.
        assert same == (name not in trained), name
    assert all(torch.equal(base[n], p) for n, p in model.named_parameters())


def test_training_lowers_the_loss_and_is_the_same_under_a_seed():
    family = ("bert", "sequence-classification")
    losses = []
    for _ in range(2):
        graph = peftc.apply("houlsby", zoo.captured(*family))
        data = rows(*family)
        start = evaluate(graph, data, pad=0)
        train(graph, data, pad=0, steps=30, batch=4, lr=1e-2, seed=4)
        end = evaluate(graph, data, pad=0)
        assert end["loss"] < start["loss"]
        losses.append(end["loss"])
    assert losses[0] == losses[1]


def test_a_graph_with_nothing_to_train_is_refused():
    with pytest.raises(PeftcError, match=r"error\[E108\]"):
        train(zoo.captured("bert", "sequence-classification").clone(), Rows([]), pad=0, steps=1)


def test_training_goes_on_after_saving_and_loading(tmp_path):
    family = ("bert", "sequence-classification")
    graph = peftc.apply("prefix", zoo.captured(*family), set={"tokens": 3, "hidden": 7})
    train(graph, rows(*family), pad=0, steps=2, batch=4)
    peftc.save(graph, tmp_path / "out")
    again = peftc.load(tmp_path / "out", zoo.model(*family))
    train(again, rows(*family), pad=0, steps=2, batch=4)
    name = "peft.prefix.reparam.embedding"
    assert not torch.equal(peftc.trainable(again)[name], peftc.trainable(graph)[name])
