"""The examples of docs/writing-a-spec.md, all of them, in their order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import zoo

import peftc
from peftc.cli.main import run

PAGE = Path(__file__).parents[1] / "docs" / "writing-a-spec.md"
BLOCK = r"(?:`(\S+)`:\n\n)?```(yaml|json|console|python)\n(.*?)```"
BLOCKS = re.findall(BLOCK, PAGE.read_text(), re.DOTALL)
SPECS = [text for _, kind, text in BLOCKS if kind == "yaml"]


def test_every_example_runs(model_folder, tmp_path, monkeypatch, capsys, captures_once):
    shutil.copytree(model_folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    commands = 0
    found: dict[str, Any] = {}
    for file, kind, text in BLOCKS:
        if kind == "json":
            assert file, "the name of the file stands before its rows"
            Path(file).write_text(text)
            continue
        if kind == "python":
            exec(text, found)
            continue
        if kind == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", text)
            assert name, "a spec starts with the name of its file"
            Path(name[1]).write_text(text)
            assert run(["check", name[1]]) == 0, capsys.readouterr().err
            peftc.plan(name[1], zoo.captured("bert"))
            continue
        for line in text.splitlines():
            assert line.startswith("$ peftc ")
            assert run(shlex.split(line)[2:]) == 0, (line, capsys.readouterr().err)
            commands += 1
    assert commands == 15
    assert Path("plan.html").is_file()
    assert Path("out/onnx/model.onnx").is_file()
    assert (found["tags"].shape, found["topic"].shape) == ((5, 5), (2,))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_the_method_of_ones_own_fits_other_families(kind, tmp_path):
    path = tmp_path / "gated-conv.yaml"
    path.write_text(next(t for t in SPECS if "gated-conv.yaml" in t.splitlines()[0]))
    assert peftc.plan(path, zoo.captured(kind)).inserted > 0
