"""What a command says of inputs and outputs, and what to type next: so, for this very graph."""

# What a graph holds beside has no types.
# pyright: reportOptionalMemberAccess=false
from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import task_specs
import zoo

import peftc
from peftc.cli.main import run
from peftc.cli.next_step import command, flags, free, training
from peftc.cli.verbs.plan import ends
from peftc.rewrite.applied import APPLIED

KEPT = {"delta": {"prompt": {"tokens": 3}}, "compose": {"prepend": {"trim": False}}}
KEPT_PROMPT = {"peftc": 1, "name": "k", "insert": [{"id": "p", "at": "embed.out", **KEPT}]}
ONE_TASK = {**task_specs.PREFIX, "tasks": {"qa": task_specs.TASKS["qa"]}}


def names(signature):
    return [i.name for i in signature.inputs], [o.name for o in signature.outputs]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize(
    "spec",
    ["lora", "prefix", "prompt", "bitfit", "ptuning2_multitask", task_specs.PREFIX, ONE_TASK],
    ids=str,
)
def test_plan_says_what_becomes_of_inputs_and_outputs(spec, kind):
    base = zoo.captured(kind, "base", 1)
    said, graph = ends(peftc.plan(spec, base)), peftc.apply(spec, base)
    (before, gave), (takes, gives) = names(base.signature), names(graph.signature)
    assert (said == "unchanged") == ((before, gave) == (takes, gives))
    assert ("task_ids is added" in said) == ("task_ids" in takes)
    if said != "unchanged":
        assert said.endswith(f"{', '.join(gives)} in place of {', '.join(gave)}")


def test_plan_says_that_a_prompt_stays():
    assert ends(peftc.plan(KEPT_PROMPT, zoo.captured("bert", "base", 1))) == (
        "outputs keep the tokens of p"
    )


def graph(spec, model_folder, task):
    made = peftc.apply(spec, zoo.captured("bert", task, 1))
    made.meta[APPLIED].reference = str(model_folder)
    return made


def test_rows_are_asked_for_where_they_can_train(model_folder, tmp_path):
    out = Path("my out")
    one = graph("lora", model_folder, "sequence-classification")
    assert training(one, out) == "peftc train 'my out' --data train.jsonl"
    assert training(one, out, trust=True).endswith(" --trust-remote-code")
    many = graph(task_specs.PREFIX, model_folder, "base")
    files = " ".join(f"--data {t}={t}.jsonl" for t in task_specs.TASKS)
    assert training(many, out) == f"peftc train 'my out' {files}"
    assert training(graph("lora", model_folder, "base"), out) is None
    assert training(graph("lora", tmp_path, "sequence-classification"), out) is None


def test_commands_are_quoted_and_do_not_overwrite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = flags({"--set": ["a=b c"], "--task": None, "--labels": "neg,po s", "--quiet": True})
    line = command("apply", "my spec.yaml", *given)
    assert shlex.split(line) == [
        "peftc", "apply", "my spec.yaml", "--set", "a=b c", "--labels", "neg,po s", "--quiet",
    ]  # fmt: skip
    assert free("out") == "out"
    Path("out").mkdir()
    Path("out-2").mkdir()
    assert free("out") == "out-3"


def test_plan_and_sites_hand_their_options_on(
    model_folder, tmp_path, monkeypatch, capsys, captures_once
):
    monkeypatch.chdir(tmp_path)
    Path("a model").symlink_to(model_folder)
    words = ["--set", "rank=4", "--task", "token-classification", "--labels", "a,b"]
    assert run(["plan", "lora", "a model", *words]) == 0
    said = capsys.readouterr().out.rpartition("Next:  peftc ")[2]
    assert shlex.split(said) == ["apply", "lora", "a model", *words, "-o", "out"]
    assert run(["sites", "a model", *words[2:]]) == 0
    said = capsys.readouterr().out.rpartition("Next:  peftc ")[2]
    assert shlex.split(said) == ["plan", "lora", "a model", *words[2:]]
