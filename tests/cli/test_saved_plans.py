"""A saved plan as SPEC: every verb that takes a spec takes it, and a plan decides what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from peftc.cli.main import run

HEAVY = ("torch", "transformers")


@pytest.fixture
def here(model_folder, tmp_path, monkeypatch, captures_once):
    """A working folder with ./model, a config alone, and ./plan.json for it: lora of rank 3."""
    (tmp_path / "model").mkdir()
    shutil.copy(model_folder / "config.json", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "lora", "model", "--set", "rank=3", "-o", "plan.json", "-q"]) == 0
    return tmp_path


def test_check_reads_a_plan_and_imports_nothing_heavy(here):
    code = (
        "import sys; from peftc.cli.main import run; code = run(sys.argv[1:]); "
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    args = [sys.executable, "-c", code, "check", "plan.json"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ok  plan.json: lora, 1 insertion(s)\n")
    assert done.stderr == "[]\n"


def test_plan_makes_it_again(here, capsys):
    capsys.readouterr()
    assert run(["plan", "plan.json"]) == 0
    again = capsys.readouterr().out
    assert again.startswith("peftc plan  plan.json  ->  model  (3 layers")
    assert "Plan: 1 to insert, 2 to unfreeze.  trainable 989 of " in again
    assert run(["plan", "plan.json", "-o", "again.json"]) == 0
    assert (here / "again.json").read_text() == (here / "plan.json").read_text()


def test_specs_show_copy_and_compare_it(here, capsys):
    capsys.readouterr()
    assert run(["specs", "show", "plan.json"]) == 0
    shown = capsys.readouterr().out
    assert "delta:\n    low_rank:\n      rank: 3\n" in shown
    assert run(["specs", "cp", "plan.json", "mine.yaml"]) == 0
    assert run(["specs", "diff", "plan.json", "mine.yaml"]) == 0
    assert capsys.readouterr().out == (
        "wrote mine.yaml, and spec.schema.json for editors\nNext:  peftc check mine.yaml\n"
    )
    assert run(["specs", "diff", "lora", "plan.json"]) == 0
    changed = [t for t in capsys.readouterr().out.splitlines() if t[:1] in "+-" and t[1:2] == " "]
    assert changed == [
        "-      rank: 8",
        "+      rank: 3",
        "-      scale: 2",
        "+      scale: 5.333333333333333",
    ]


def test_a_plan_is_not_changed_on_the_way(here, capsys):
    assert run(["plan", "plan.json", "--set", "rank=4"]) == 2
    assert capsys.readouterr().err == (
        "error[E008]: --set rank=4: plan.json is a saved plan, which has decided it\n"
        "  = help: give it before: peftc plan SPEC MODEL --set NAME=VALUE -o plan.json\n"
    )
    assert run(["apply", "plan.json", "-o", "out", "--without", "0"]) == 2
    assert capsys.readouterr().err == (
        "error[E008]: --without: plan.json is a saved plan, which has decided the layers\n"
    )


def test_a_stale_plan_is_not_planned_again(here, capsys):
    config = json.loads((here / "model/config.json").read_text())
    (here / "model/config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    assert run(["plan", "plan.json"]) == 5
    assert capsys.readouterr().err == (
        "error[E301]: plan.json is stale: it was made for another model\n"
        "  = note: the configuration differs\n"
        "  = note: insertions differ\n"
        "  = note: parameters differ\n"
        "  = help: plan again: peftc plan SPEC MODEL -o plan.json\n"
    )


def test_a_spec_may_be_json(here, capsys):
    spec = {"peftc": 1, "name": "n", "insert": [{"id": "a", "at": "ffn.out", "delta": "vector"}]}
    (here / "spec.json").write_text(json.dumps(spec))
    assert run(["check", "spec.json"]) == 0
    assert capsys.readouterr().out == "ok  spec.json: n, 1 insertion(s)\n"


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"options": {"model": ["model"]}}, "options.model.str: input should be a valid string"),
        ({"plan": None}, "plan: input should be a valid dictionary"),
        ({"format_version": "2.0"}, "format_version: input should be '1.0'"),
        ({"optoins": {}}, "optoins: extra inputs are not permitted"),
    ],
)
def test_a_plan_that_was_edited(here, capsys, change, note):
    data = json.loads((here / "plan.json").read_text())
    (here / "plan.json").write_text(json.dumps({**data, **change}))
    assert run(["apply", "plan.json", "-o", "out"]) == 5
    assert capsys.readouterr().err == (
        "error[E304]: plan.json is no plan that this version reads\n"
        f"  = note: {note}\n"
        "  = help: make it again: peftc plan SPEC MODEL -o plan.json\n"
    )


@pytest.mark.parametrize("text", ["[" * 100_000, "\ufffd{", '{"kind": "peftc plan"'])
def test_a_plan_that_is_no_json(here, capsys, text):
    (here / "plan.json").write_bytes(text.encode("utf-8"))
    for command in (["check"], ["specs", "show"], ["plan"]):
        assert run([*command, "plan.json"]) == 5
        assert capsys.readouterr().err.startswith("error[E304]: plan.json is no plan that ")


def test_a_plan_that_was_edited_is_refused(here, capsys):
    text = (here / "plan.json").read_text().replace('"kaiming"', '"gaussian"')
    assert text != (here / "plan.json").read_text()
    (here / "plan.json").write_text(text)
    assert run(["apply", "plan.json", "-o", "out"]) == 5
    assert "= note: it was changed after it was written" in capsys.readouterr().err
