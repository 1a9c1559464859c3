"""Plans as files and as pictures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import zoo

import peftc
from peftc.cli.main import run
from peftc.picture import page, picture
from peftc.spec.catalogue import names


def test_a_plan_is_applied_exactly(model_folder, tmp_path, capsys):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    assert run(["plan", "mam", str(model_folder), "--set", "tokens=4", "-o", str(plan)]) == 0
    assert f"wrote {plan}" in capsys.readouterr().out
    assert run(["apply", str(plan), "-o", str(out)]) == 0
    planned = json.loads(plan.read_text())
    lock = json.loads((out / "peftc.lock.json").read_text())
    assert lock["plan"] == planned["plan"]
    assert planned["resolved_spec"]["insert"][0]["delta"]["prefix"]["tokens"] == 4


def test_a_stale_plan_is_refused_and_nothing_is_written(model_folder, tmp_path, capsys):
    other, plan, out = tmp_path / "other", tmp_path / "plan.json", tmp_path / "out"
    zoo.build("bert", "token-classification").save_pretrained(other)
    assert run(["plan", "lora", str(model_folder), "-o", str(plan)]) == 0
    capsys.readouterr()
    assert run(["apply", str(plan), str(other), "-o", str(out)]) == 5
    text = capsys.readouterr().err
    assert text.startswith(f"error[E301]: {plan} is stale: it was made for another model\n")
    assert "= note: model differ" in text
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "plan.json"]


@pytest.mark.parametrize("content", ["{}", "[1]", "nonsense", '{"kind": "peftc plan"}'])
def test_a_file_that_is_no_plan_is_refused(content, tmp_path, capsys):
    path = tmp_path / "plan.json"
    path.write_text(content)
    assert run(["apply", str(path), "-o", str(tmp_path / "out")]) == 5
    assert capsys.readouterr().err.startswith(f"error[E304]: {path} is no plan")


def test_a_plan_is_not_overwritten(model_folder, tmp_path, capsys):
    path = tmp_path / "plan.json"
    path.write_text("mine")
    command = ["plan", "lora", str(model_folder), "-o", str(path)]
    assert run(command) == 5
    assert "error[E306]" in capsys.readouterr().err
    assert run([*command, "--force"]) == 5  # a file of the user's own
    assert "error[E318]" in capsys.readouterr().err
    assert path.read_text() == "mine"
    path.write_text('{\n "kind": "peftc plan"\n}')
    assert run([*command, "--force"]) == 0
    assert json.loads(path.read_text())["kind"] == "peftc plan"


KINDS = {  # biases; an encoder and a decoder; one of them
    "bitfit": ["bert", "gpt2"],
    "prefix_seq2seq": ["t5"],
    "ptuning2_multitask": ["bert", "gpt2", "llama"],
}


@pytest.mark.parametrize(
    ("spec", "kind"),
    [(s, k) for s in names() for k in KINDS.get(s, ["bert", "gpt2", "llama", "t5"])],
)
def test_every_plan_can_be_drawn(spec, kind):
    plan = peftc.plan(spec, zoo.captured(kind))
    svg = picture(plan)
    ElementTree.fromstring(svg)  # well-formed
    for planned in plan.insertions:
        ident = planned.insertion.id
        assert f'href="#{ident}"' in svg
        assert f'<section id="{ident}">' in page(plan, kind)
    assert not re.search(r"(?:src|href)=\"http", page(plan, kind))  # nothing is loaded


def test_a_page_shows_the_lines_of_the_spec(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "peftc: 1\nname: <mine>\ninsert:\n"
        "  - id: first\n    at: ffn.out\n    delta: {bottleneck: {dim: 4}}\n"
        "  - {id: second, at: attn.q, delta: {low_rank: {rank: 2}}}\n"
    )
    html = page(peftc.plan(path, zoo.captured("bert")), "bert")
    assert "<title>&lt;mine&gt; on bert</title>" in html
    assert "  4 |   - id: first\n  5 |     at: ffn.out\n  6 |     delta:" in html
    assert "  7 |   - {id: second" in html
    assert "<code>h &larr; h + up(relu(down(h)))</code>" in html
