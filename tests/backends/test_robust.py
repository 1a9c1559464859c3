"""Full disks, killed runs, places that cannot be written: a clear error, the old output whole."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import linking
import pytest

import peftc
from peftc.backends import weights
from peftc.diagnostics import PeftcError
from peftc.files import staged
from peftc.runtime import DeploymentError, Session

CASE = ("bert", "base", "prompt", False)


@pytest.fixture
def old(tmp_path):
    """An output folder that must survive."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine").write_text("keep")
    return folder


def untouched(folder: Path) -> bool:
    """Whether `folder` is as `old` made it, and nothing was left beside it."""
    return [p.name for p in folder.iterdir()] == ["mine"] and [
        p.name for p in folder.parent.iterdir()
    ] == ["out"]


def test_a_disk_that_becomes_full(old, monkeypatch):
    def open_full(path, mode="r", *args, **kwargs):
        return builtins.open("/dev/full" if "w" in mode else path, mode, *args, **kwargs)

    monkeypatch.setattr(weights, "open", open_full, raising=False)
    with pytest.raises(PeftcError) as caught:
        peftc.export(linking.weightless(*CASE), "onnx", old, weights="copy", force=True)
    assert str(caught.value).startswith(f"error[E504]: the disk of {old} is full: ")
    assert untouched(old)


def test_a_disk_with_too_little_room_is_refused_before_the_work(old, monkeypatch):
    monkeypatch.setattr("peftc.machine.free_disk", lambda _place: 1000)
    with pytest.raises(PeftcError) as caught:
        peftc.export(linking.weightless(*CASE), "onnx", old, weights="copy", force=True)
    text = str(caught.value).splitlines()[0]
    assert text.startswith("error[E501]: exporting to onnx needs ")
    assert text.endswith("1.0 kB free")
    assert untouched(old)


WRITER = """
import sys, time
from pathlib import Path
from peftc.files import staged
with staged(Path(sys.argv[1]), force=True) as partial:
    with open(partial / "model.safetensors", "wb") as file:
        while True:
            file.write(b"0" * 4096)
            file.flush()
            time.sleep(0.005)
"""


def test_a_killed_run_leaves_the_old_output_and_the_next_run_cleans_up(old):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(old)])
    half = old.with_name("out.partial") / "model.safetensors"
    end = time.monotonic() + 60
    while not (half.is_file() and half.stat().st_size > 8192):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert half.is_file()
    assert (old / "mine").read_text() == "keep"
    with staged(old, force=True) as partial:
        assert not list(partial.iterdir())
        (partial / "mine").write_text("new")
    assert untouched(old)


def test_a_run_killed_between_its_renames_is_undone(old):
    old.rename(old.with_name("out.old"))
    with pytest.raises(PeftcError, match=r"error\[E306\]"), staged(old):
        pass
    assert untouched(old)


def test_a_failing_rename_puts_the_old_output_back(old, monkeypatch):
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, os.strerror(5))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PeftcError, match=r"error\[E503\]"), staged(old, force=True):
        pass
    monkeypatch.undo()
    assert untouched(old)


def test_a_place_that_cannot_be_written():
    with pytest.raises(PeftcError, match=r"error\[E503\]: cannot write to /proc/out: "):
        peftc.export(linking.weightless(*CASE), "onnx", "/proc/out", weights="copy")


def test_on_another_disk_the_default_is_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["peftc.backends.export"], "linkable", lambda _stored, _out: False
    )
    thin = linking.weightless(*CASE)
    exported = peftc.export(thin, "onnx", tmp_path / "out")
    assert exported.facts["weights"] == "copy"
    assert all((exported.folder / n).stat().st_nlink == 1 for n in exported.files)
    assert peftc.verify(thin, exported.folder).ok


def test_a_base_that_is_trained_further_after_the_export_is_refused(tmp_path):
    base = linking.base("bert", "base")
    graph = linking.artifact(*CASE)[0].clone(pieces=True)
    copy = tmp_path / "base"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    graph.meta |= linking.artifact(*CASE)[0].meta
    folder = peftc.save(graph, tmp_path / "artifact")
    thin = peftc.load(folder, copy, weights=False)
    exported = peftc.export(thin, "onnx", tmp_path / "out", weights="link")
    Session(exported.folder)
    with open(copy / "model.safetensors", "r+b") as file:
        file.seek(1 << 14)
        data = bytearray(file.read())
        file.seek(1 << 14)
        file.write(bytes(b ^ 1 for b in data))
    with pytest.raises(DeploymentError, match=r"E303.*model.safetensors is not the file that was"):
        Session(exported.folder)
    with pytest.raises(PeftcError, match=r"error\[E303\].*model.safetensors is damaged"):
        peftc.verify(thin, exported.folder)
