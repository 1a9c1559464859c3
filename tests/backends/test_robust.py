"""Full disks and places that cannot be written: a clear error, the old output whole."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import sys
from pathlib import Path

import linking
import pytest
import torch

import peftc
from peftc.artifact.folder import LOCK
from peftc.backends import backend, torchscript, weights
from peftc.ground import files
from peftc.ground.diagnostics import PeftcError
from peftc.ground.output.staging import staged
from peftc.runtime import DeploymentError, Session

exporting = sys.modules["peftc.backends.export"]  # the package has a function of this name
CASE = ("bert", "base", "prompt", False)


@pytest.fixture
def old(tmp_path):
    """An output folder that must survive."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / LOCK).write_text("keep")
    return folder


def untouched(folder: Path) -> bool:
    """Whether `folder` is as `old` made it, and nothing was left beside it."""
    return [p.name for p in folder.iterdir()] == [LOCK] and [
        p.name for p in folder.parent.iterdir()
    ] == ["out"]


def test_a_disk_that_becomes_full(old, monkeypatch):
    def open_full(path, mode="r", *args, **kwargs):
        return builtins.open("/dev/full" if "w" in mode else path, mode, *args, **kwargs)

    monkeypatch.setattr(weights, "open", open_full, raising=False)
    large = weights.Source(torch.float32, (1 << 16,), lambda: torch.zeros(1 << 16))
    with pytest.raises(PeftcError) as caught, staged(old, force=True) as partial:
        weights.write(partial / "model.safetensors", {"w": large})
    assert str(caught.value).startswith(f"error[E504]: the disk of {old} is full: ")
    assert untouched(old)


def test_a_disk_that_becomes_full_under_torchs_own_writer(old, monkeypatch):
    class Scripted:
        def save(self, path):
            Path(path).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    def open_full(path, mode="r", *args, **kwargs):
        return builtins.open("/dev/full" if "w" in mode else path, mode, *args, **kwargs)

    monkeypatch.setattr(files, "open", open_full, raising=False)
    with pytest.raises(PeftcError) as caught, staged(old, force=True) as partial:
        torchscript.save(Scripted(), partial / "model.pt")  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"error[E504]: the disk of {old} is full: ")
    assert untouched(old)


def test_a_disk_with_too_little_room_is_refused_before_the_work(old, monkeypatch):
    monkeypatch.setattr("peftc.ground.machine.free_disk", lambda _place: 1000)
    with pytest.raises(PeftcError) as caught:
        peftc.export(linking.weightless(*CASE), "onnx", old, weights="copy", force=True)
    text = str(caught.value).splitlines()[0]
    assert text.startswith("error[E501]: exporting to onnx needs ")
    assert text.endswith("1.0 kB free")
    assert untouched(old)


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("keep")
    thin = linking.weightless(*CASE)
    with pytest.raises(PeftcError, match=r"error\[E503\]: cannot write to .*file/out: "):
        peftc.export(thin, "onnx", tmp_path / "file" / "out", weights="copy")
    assert (tmp_path / "file").read_text() == "keep"

    def read_only(*_args, **_kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(PeftcError, match=r"error\[E503\].*out: Read-only file system"):
        peftc.export(thin, "onnx", tmp_path / "out", weights="copy")


def test_on_another_disk_the_default_is_a_copy(tmp_path, monkeypatch):
    graph, target = linking.weightless(*CASE), backend("onnx")
    assert exporting.files_to_link(graph, target, None, tmp_path / "new" / "out") is not None
    monkeypatch.setattr(exporting, "linkable", lambda _stored, _out: False)
    assert exporting.files_to_link(graph, target, None, tmp_path / "out") is None
    assert exporting.files_to_link(graph, target, "link", tmp_path / "out") is not None


def test_a_base_that_is_trained_further_after_the_export_is_refused(tmp_path):
    folder = shutil.copytree(linking.linked(*CASE).folder, tmp_path / "deployed")
    base = tmp_path / "model.safetensors"
    (folder / "model.safetensors").rename(base)
    (folder / "model.safetensors").hardlink_to(base)
    Session(folder, check="full")
    with open(base, "r+b") as file:
        file.seek(1 << 14)
        data = file.read()
        file.seek(1 << 14)
        file.write(bytes(b ^ 1 for b in data))
    with pytest.raises(DeploymentError, match=r"E303.*model.safetensors is not the file that was"):
        Session(folder)
    with pytest.raises(PeftcError, match=r"error\[E303\].*model.safetensors is damaged"):
        peftc.verify(linking.weightless(*CASE), folder)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended by SIGSEGV"),
        ("raise SystemExit(3)", "its process ended with 3, saying nothing"),
        ("raise ValueError('no such kernel')", "ValueError: no such kernel"),
    ],
)
def test_a_file_that_does_not_run_says_why(code, said, monkeypatch, tmp_path):
    runner = tmp_path / "runner.py"
    runner.write_text(f"def opened(model, threads=0):\n    {code}\n")
    monkeypatch.setattr(torchscript.TorchScript, "runner", runner)
    graph = linking.artifact(*CASE)[0]
    exported = peftc.export(graph, "torchscript", tmp_path / "new")
    with pytest.raises(PeftcError) as caught:
        peftc.verify(graph, exported.folder)
    assert str(caught.value).splitlines() == [
        f"error[E406]: {tmp_path / 'new' / 'model.pt'} does not run",
        f"  = note: {said}",
        "  = help: export again, with another --opset for ONNX",
    ]
