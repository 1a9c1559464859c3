"""Prompt ensembles: the answers and the gradients of prompts trained apart, in one batch."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from inline_snapshot import snapshot
from tolerances import PARITY

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.pieces.vote import Vote

TOKENS, MEMBERS = 4, 3
FAMILIES = [
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("llama", "sequence-classification"),
]
CLOSE = PARITY[torch.float32]


def spec(**options):
    delta = {"prompt": {"tokens": TOKENS, **options}}
    return {"peftc": 1, "name": "p", "insert": [{"id": "p", "at": "embed.out", "delta": delta}]}


def table(graph):
    """The one parameter of a graph whose only piece is a prompt."""
    [parameter] = [p for _, p in graph.peft_parameters()]
    return parameter


def apart(graph, rows, inputs):
    """The logits of each prompt by itself, in the graph of one prompt."""
    found = []
    for one in rows:
        table(graph).data.copy_(one)
        found.append(graph(**inputs).logits)
    return torch.stack(found)


def winner(logits):
    """The class with most votes, the larger mean probability deciding: over (members, classes)."""
    votes = torch.bincount(logits.argmax(-1), minlength=logits.shape[-1])
    best = (votes == votes.max()).nonzero().flatten()
    return best[logits.softmax(-1).mean(0)[best].argmax()].item()


@pytest.mark.parametrize(("kind", "task"), FAMILIES)
def test_an_ensemble_answers_as_its_members_together(kind, task):
    model, program = zoo.model(kind, task), zoo.captured(kind, task)
    by_vote = peftc.apply(spec(ensemble=MEMBERS), program)
    by_mean = peftc.apply(spec(ensemble=MEMBERS, vote="mean"), program)
    reference.randomise(by_vote, std=2.0)
    rows = table(by_vote).detach()
    assert rows.shape == (MEMBERS, TOKENS, 24)
    table(by_mean).data.copy_(rows)
    single = peftc.apply(spec(), program)
    split = 0
    for batch, length in ((17, 9), (1, 5)):
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            alone = apart(single, rows, inputs)
            mean, vote = by_mean(**inputs).logits, by_vote(**inputs).logits
        torch.testing.assert_close(mean, alone.mean(0), **CLOSE)
        assert vote.shape == alone[0].shape
        torch.testing.assert_close(vote.exp().sum(-1), torch.ones(vote.shape[:-1]), **CLOSE)
        for found, each in zip(
            vote.flatten(0, -2), alone.flatten(1, -2).transpose(0, 1), strict=True
        ):
            assert found.argmax() == winner(each)
            split += len(set(each.argmax(-1).tolist())) > 1
    assert split, "the members never disagree, so that nothing is voted on"


def test_a_majority_outvotes_a_sure_minority_and_ties_go_to_the_surer():
    sure = torch.tensor([9.0, 0.0, 0.0])
    weak = torch.tensor([0.0, 0.1, 0.0])
    third = torch.tensor([0.0, 0.0, 0.2])
    vote = Vote(3, "majority").eval()
    assert vote(torch.stack([sure, weak, weak])).argmax() == 1
    assert vote(torch.stack([weak, sure, third])).argmax() == 0
    found = vote(torch.stack([sure, weak, weak])).exp()
    mean = (weak.softmax(0) * 2 + sure.softmax(0)) / 3
    torch.testing.assert_close(found[0], (torch.tensor([1, 2, 0]) + mean) / 4)


@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm"])
def test_the_loss_is_the_mean_and_the_gradients_those_of_prompts_trained_apart(task):
    """Llama has no dropout, so that training mode is deterministic."""
    model = zoo.model("llama", task)
    one = spec(ensemble=MEMBERS)
    one["unfreeze"] = [{"role": "norm"}]
    graph = peftc.apply(one, zoo.captured("llama", task))
    reference.randomise(graph)
    [rows] = [p for n, p in graph.named_parameters() if n.startswith("peft.")]
    inputs = zoo.inputs(model, 4, 9)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if task != "causal-lm":
        inputs["labels"] = torch.tensor([0, 4, 2, 1])
    graph.train()
    output = graph(**inputs)
    assert output.logits.shape[0] == 4 * MEMBERS
    output.loss.backward()
    losses, shared = [], 0
    alone = peftc.apply(spec() | {"unfreeze": one["unfreeze"]}, zoo.captured("llama", task)).train()
    [mine] = [p for n, p in alone.named_parameters() if n.startswith("peft.")]
    for k in range(MEMBERS):
        alone.zero_grad()
        mine.data.copy_(rows.detach()[k])
        loss = alone(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
        torch.testing.assert_close(rows.grad[k], mine.grad, **CLOSE)
        assert mine.grad.abs().max() > 1e-3
        shared += alone.get_parameter(next(iter(peftc.trainable(alone)))).grad / MEMBERS
    torch.testing.assert_close(output.loss.detach(), torch.stack(losses).mean(), **CLOSE)
    found = graph.get_parameter(next(iter(peftc.trainable(graph)))).grad
    torch.testing.assert_close(found, shared, **CLOSE)


def test_the_members_start_apart_also_from_labels_and_survive_saving(tmp_path):
    program = zoo.captured("bert", "sequence-classification")
    for start in ("uniform", "normal", {"vocab": 50}):
        rows = table(peftc.apply(spec(ensemble=2, init=start), program)).detach()
        assert not torch.equal(rows[0], rows[1])
    graph = peftc.apply(spec(ensemble=2), program)
    peftc.save(graph, tmp_path / "out")
    again = peftc.load(tmp_path / "out", program)
    inputs = zoo.inputs(zoo.model("bert", "sequence-classification"), 3, 7)
    with torch.no_grad():
        assert torch.equal(graph(**inputs).logits, again(**inputs).logits)
    with pytest.raises(PeftcError, match=r"E408.*no form of: Vote"):
        peftc.export(graph, "peft", tmp_path / "peft")


def test_padding_none_hides_the_padding_of_repeated_ids_too():
    """The classifier then reads the last token, padding or not, as with inputs_embeds."""
    task = "sequence-classification"
    model, program = zoo.model("llama", task), zoo.captured("llama", task)
    compose = {"prepend": {"padding": "none", "trim": False}}
    graphs = []
    for options in ({"ensemble": 2, "vote": "mean"}, {}):
        one = spec(**options)
        one["insert"][0]["compose"] = compose
        graphs.append(peftc.apply(one, program))
    ensemble, alone = graphs
    reference.randomise(alone)
    table(ensemble).data.copy_(table(alone).detach().expand(2, -1, -1))
    inputs = zoo.inputs(model, 4, 9)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(**inputs).logits, alone(**inputs).logits, **CLOSE)


def test_inputs_are_repeated_once_and_outputs_combined():
    graph = peftc.apply(spec(ensemble=MEMBERS), zoo.captured("bert", "sequence-classification"))
    reports = {r.name: r.difference for r in graph.meta["peftc.applied"].reports}
    assert reports["combine peft.p"] == snapshot(
        (
            "-return [%linear_19]",
            "+%peft_p_majority = peft.p.majority(%linear_19) : f32[batch, 5]",
            "+return [%peft_p_majority]",
        )
    )
    assert next(iter(reports)) == "repeat inputs 3 times"
    changed = reports["repeat inputs 3 times"]
    assert [line for line in changed if "repeat" in line and line[0] == "+"][:3] == snapshot(
        [
            "+%repeat_default_2 = aten.repeat(%token_type_ids, [3, 1]) : int64[3*batch, sequence]",
            "+%repeat_default_1 = aten.repeat(%attention_mask, [3, 1]) : int64[3*batch, sequence]",
            "+%repeat_default = aten.repeat(%input_ids, [3, 1]) : int64[3*batch, sequence]",
        ]
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"vote": "mean"}, "`vote` is for an `ensemble` of prompts"),
        ({"ensemble": 2, "reparam": {"hidden": 9}}, "share no network that makes them"),
        ({"ensemble": 2, "init": {"ids": [5]}}, "an `ensemble` that starts equal stays equal"),
        ({"ensemble": 1}, "greater than 1"),
    ],
)
def test_what_is_no_ensemble_is_refused(options, why):
    with pytest.raises(PeftcError, match=why):
        peftc.load_spec(spec(**options))
