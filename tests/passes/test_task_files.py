"""A graph of many tasks called, saved and exported: all of them or one."""

# Specs are plain dicts, and what a graph gives and holds has names that no type knows.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import pytest
import torch
import zoo
from task_specs import CASES, LORA, PREFIX, applied, mixed

import peftc
from peftc.ground.diagnostics import PeftcError


def test_calls_that_do_not_say_which_task_are_refused():
    graph = applied(PREFIX)
    inputs, ids = mixed("bert", 3, 6)
    for call, message in (
        (
            {"labels": ids},
            "the graph has several tasks: say which\n  = help: tasks: ner, topic, qa",
        ),
        ({"task": "nre"}, "no task `nre`"),
        ({"labels_topic": ids}, "need `task_ids`"),
        ({"taskids": ids}, "unknown: taskids"),
    ):
        with pytest.raises(PeftcError) as caught:
            graph(**inputs, **call)
        assert message in str(caught.value)
    with pytest.raises(PeftcError, match="no task `b`"):
        peftc.select_task(graph, "b")
    with pytest.raises(PeftcError, match="the spec has no `tasks`"):
        peftc.select_task(zoo.captured("bert", "base"), "ner")


def test_an_artifact_keeps_the_tasks(tmp_path):
    graph = applied(PREFIX)
    peftc.save(graph, tmp_path / "out")
    again = peftc.load(tmp_path / "out", zoo.model("bert"))
    inputs, ids = mixed("bert", 3, 6)
    with torch.no_grad():
        for name, value in graph(**inputs, task_ids=ids).items():
            assert torch.equal(again(**inputs, task_ids=ids)[name], value)
    assert "peft.p.layer0_attn_kv.qa.key" in dict(again.peft_parameters())
    assert "| `tasks.ner` | token_classification" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "case", "to", "task"),
    [
        ("gpt2", "prefix", "onnx", None),
        ("gpt2", "prefix", "torchscript", "qa"),
        ("bert", "lora", "torchscript", None),
    ],
)
def test_exports_of_all_tasks_and_of_one_run_in_their_own_runtime(kind, case, to, task, tmp_path):
    graph = applied(CASES[case], kind, layers=1)
    exported = peftc.export(graph, to, tmp_path / "out", task=task)
    report = peftc.verify(graph, tmp_path / "out")
    assert report.ok, report
    inputs = [i["name"] for i in exported.facts["inputs"]]
    if task is None:
        names = {"logits_ner", "logits_topic", "start_logits_qa", "end_logits_qa"}
        assert inputs[-1] == "task_ids"
    else:
        names = {"start_logits", "end_logits"}
        assert "task_ids" not in inputs
        assert not [n for n in exported.facts["peft"] if "ner" in n or "topic" in n]
    assert {r.output for r in report.rows} == names


def test_what_peft_has_no_form_of_is_refused(tmp_path):
    with pytest.raises(PeftcError, match="it has no form of: Head") as caught:
        peftc.export(applied(LORA), "peft", tmp_path / "out", task="ner")
    assert caught.value.diagnostics[0].code == "E408"
    with pytest.raises(PeftcError, match="E307"):
        peftc.save(peftc.select_task(applied(LORA), "ner"), tmp_path / "out")
