"""`peftc train` on a graph of several tasks: a file each, or one of them alone."""

from __future__ import annotations

import json

import pytest

from peftc.cli.main import main

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
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def test_training_on_several_tasks_and_on_one(capsys, model_folder, tmp_path):
    (tmp_path / "many.yaml").write_text(SPEC)
    files = {task: tmp_path / f"{task}.jsonl" for task in ROWS}
    for task, path in files.items():
        path.write_text("\n".join(map(json.dumps, ROWS[task])))
    named = [f"{task}={path}" for task, path in files.items()]
    made = tmp_path / "out"
    code, _, err = run(capsys, "apply", tmp_path / "many.yaml", model_folder, "-o", made)
    assert code == 0, err
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
