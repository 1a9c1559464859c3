"""The shipped `ptuning2_multitask`: each task's prompts as the model's own cache, and its head."""

# What a graph holds has names that no type knows.
# pyright: reportCallIssue=false, reportIndexIssue=false
from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import PARITY
from torch.nn.functional import linear
from transformers import DynamicCache

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.spec.catalogue import path_of

NAME = "ptuning2_multitask"
TASKS = {"ner": ["logits"], "entailment": ["logits"], "qa": ["start_logits", "end_logits"]}
TOKENS = 5


def made(kind, share):
    """The shipped spec on a tiny model without a head, no piece of it zero."""
    sets = {"tokens": TOKENS, "share": share}
    graph = peftc.apply(NAME, zoo.captured(kind, "base"), set=sets)
    reference.randomise(graph)
    return graph


def by_cache(graph, kind, share, task, inputs):
    """A task's outputs: the plain model with the prompts in its cache, and its head by hand."""
    batch, mask = inputs["attention_mask"].shape[0], inputs["attention_mask"]
    pieces = [p for _, p in reference.placed(graph, "deep_prompt")]
    own = [p.of(task) if share == "per_task" else p for p in pieces]
    pairs = [tuple(t[None].expand(batch, -1, -1, -1) for t in (p.key, p.value)) for p in own]
    longer = torch.cat([torch.ones(batch, TOKENS, dtype=mask.dtype), mask], 1)
    given = {**inputs, "attention_mask": longer}
    found = zoo.model(kind)(**given, past_key_values=DynamicCache(pairs), use_cache=True)
    read = found.last_hidden_state
    if task == "entailment":
        last = mask.sum(1) - 1
        read = found.pooler_output if kind == "bert" else read[torch.arange(batch), last]
    head = graph.get_submodule(f"peft.tasks.{task}.linear")
    scores = linear(read, head.weight, head.bias)
    return scores.unbind(-1) if task == "qa" else (scores,)


@pytest.mark.parametrize("share", ["per_task", "all_tasks"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_each_row_has_its_task_s_prompts_at_every_layer_and_its_head(kind, share):
    graph = made(kind, share)
    for batch, length in ((6, 9), (3, 6)):
        inputs, ids = zoo.inputs(zoo.model(kind), batch, length), torch.arange(batch) % 3
        with torch.no_grad():
            got = graph(**inputs, task_ids=ids)
            for k, (task, names) in enumerate(TASKS.items()):
                rows = ids == k
                real = inputs["attention_mask"][rows]
                want = by_cache(graph, kind, share, task, inputs)
                for name, value in zip(names, want, strict=True):
                    ours, theirs = got[f"{name}_{task}"][rows], value[rows]
                    if task != "entailment":
                        ours, theirs = (zoo.real_rows(t, real) for t in (ours, theirs))
                    torch.testing.assert_close(ours, theirs, **PARITY[value.dtype])


def test_a_prompt_for_each_task_or_one_for_all_is_what_is_trained():
    layers, size = 3, TOKENS * 24
    heads = {"ner": 25 * 9, "entailment": 25 * 2, "qa": 25 * 2}
    for share, prompts in (("per_task", 3), ("all_tasks", 1)):
        graph = made("bert", share)
        counts = {n: p.numel() for n, p in peftc.trainable(graph).items()}
        assert set(counts) == {n for n, _ in graph.peft_parameters()}
        assert sum(counts.values()) == prompts * layers * 2 * size + sum(heads.values())
        for task, count in heads.items():
            mine = [c for n, c in counts.items() if n.startswith(f"peft.tasks.{task}.")]
            assert sum(mine) == count
    plan = peftc.plan(NAME, zoo.captured("bert", "base"))
    assert {p.insertion.delta.options.tokens for p in plan.insertions} == {32}


def test_a_task_can_have_a_length_of_its_own_and_what_all_share_cannot(tmp_path):
    text = path_of(NAME).read_text()
    own = text.replace("{labels: 9}}}", "{labels: 9}}, set: {tokens: 9}}", 1)
    assert own != text
    path = tmp_path / "mine.yaml"
    path.write_text(own)
    graph = peftc.apply(path, zoo.captured("bert", "base"), set={"tokens": 4})
    bank = reference.placed(graph, "deep_prompt")[0][1]
    assert {t: bank.of(t).key.shape[1] for t in TASKS} == {"ner": 9, "entailment": 4, "qa": 4}
    with pytest.raises(PeftcError, match=r"E013.*`deep_prompt`, which all tasks share"):
        peftc.load_spec(path, set={"share": "all_tasks"})
