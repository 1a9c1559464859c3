"""`peftc train` on a graph of several tasks: a file each, or one of them alone."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager

import pytest

from peftc.cli import bar
from peftc.cli import main as cli

SPEC = """
peftc: 1
name: many
vars: {t: 3}
tasks:
  ner: {head: {token_classification: {labels: [O, B-a]}}, set: {t: 2}}
  topic: {head: {sequence_classification: {labels: [x, y]}}}
insert:
  - id: p
    at: attn.kv
    delta: {prefix: {tokens: $t}}
    share: per_task
"""
ROWS = {
    "ner": [{"tokens": ["the", "cat"], "tags": ["O", "B-a"]}, {"tokens": ["a"], "tags": ["O"]}],
    "topic": [{"text": "the cat", "label": "x"}, {"text": "a dog sat", "label": "y"}],
}


def run(capsys, *args):
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


@pytest.fixture(scope="module")
def home(model_folder, tmp_path_factory):
    """A folder with an artifact of two tasks, `out`, and a file of rows for each."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "many.yaml").write_text(SPEC)
    for task, rows in ROWS.items():
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = ["apply", folder / "many.yaml", model_folder, "-o", folder / "out"]
    assert cli.run([str(a) for a in made]) == 0
    return folder


def test_training_on_several_tasks_and_on_one(capsys, home):
    made = home / "out"
    files = {task: home / f"{task}.jsonl" for task in ROWS}
    named = [f"{task}={path}" for task, path in files.items()]
    data = [arg for n in named for arg in ("--data", n)]
    held_out = [arg for n in named for arg in ("--eval", n)]
    code, out, err = run(capsys, "train", made, *data, *held_out, "--steps", 4, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert list(facts["after"]) == [
        "loss", "score", "ner_loss", "ner_f1", "ner_precision", "ner_recall", "ner_accuracy",
        "topic_loss", "topic_accuracy", "topic_f1",
    ]  # fmt: skip
    assert facts["best"][1] == "score"
    kept = json.loads((made / "runs" / "001" / "run.json").read_text())["files"]
    assert [f["task"] for f in kept["train"]] == ["ner", "topic"]
    code, out, err = run(
        capsys, "train", made / "runs" / "001", "--task", "ner", "--data", files["ner"], "--steps",
        2, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["steps"] == 2
    for args, wanted, message in [
        (["--data", files["ner"]], 3, "the graph has several tasks: say which"),
        (["--data", f"nre={files['ner']}"], 3, "no task `nre`"),
        (["--task", "ner", "--data", named[1]], 2, "is not of the task `ner`"),
        (["--data", "ner=nowhere.jsonl"], 2, "nowhere.jsonl: no such file"),
    ]:
        code, _, err = run(capsys, "train", made, *args)
        assert (code, message in err) == (wanted, True), err
    assert not (made / "runs" / "003").exists()


@contextmanager
def ctrl_c(_steps, **_options):
    """In place of the bar: an interrupt at the third step."""

    def watch(moment):
        if moment.event == "step" and moment.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    yield watch


def test_a_run_on_several_tasks_that_is_resumed_ends_as_one_that_was_not(capsys, home, monkeypatch):
    rows = [
        arg
        for task in ROWS
        for option in ("--data", "--eval")
        for arg in (option, f"{task}={home / task}.jsonl")
    ]
    begin = ["train", home / "out", *rows, "--steps", 6, "--batch", 2, "--every", 2, "--json"]
    code, out, err = run(capsys, *begin, "--name", "whole")
    assert code == 0, err
    whole = json.loads(out)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(bar, "training_bar", ctrl_c)
        code, out, err = run(capsys, *begin, "--name", "half")
    assert (code, json.loads(out)["steps"]) == (130, 3), err
    half = home / "out" / "runs" / "half"
    code, out, err = run(capsys, "train", half, "--resume", "--json")
    assert code == 0, err
    again = json.loads(out)
    for fact in ("losses", "evaluations", "best", "after"):
        assert again[fact] == whole[fact], fact
    names = [r / "peft.safetensors" for r in (half, half.with_name("whole"))]
    assert names[0].read_bytes() == names[1].read_bytes()
