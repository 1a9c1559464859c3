"""What --force never replaces, and places where no output can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftc.ground.diagnostics import PeftcError
from peftc.ground.output.guard import DEMO, EXPORT, LOCK, check_absent, check_free, is_output
from peftc.ground.output.staging import staged
from peftc.ground.output.text import write_text


def refused(code: str, function, *args, **options) -> str:
    with pytest.raises(PeftcError) as caught:
        function(*args, **options)
    assert caught.value.diagnostics[0].code == code, caught.value
    return caught.value.diagnostics[0].message


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a base model and an artifact that has a run and an export."""
    for name in ("base/model.safetensors", f"out/{LOCK}", f"out/onnx/{EXPORT}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "out" / "runs" / "001").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "001" / "run.json").write_text(
        '{"format_version": "1.0", "artifact": "../.."}'
    )
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("../base", "is an input"),
        ("../work/../base", "is an input"),
        ("../link", "is an input"),
        ("../base/new", "lies in"),
        ("../out", "is an input"),
        ("../out/runs", "lies in"),
        ("../out/runs/001", "lies in"),
    ],
)
def test_an_input_is_never_replaced(here, out, said):
    (here / "link").symlink_to("base")
    inputs = ("lora", None, "../base", here / "out")
    assert said in refused("E316", check_free, out, force=True, inputs=inputs)


def test_what_holds_an_input_is_never_replaced(here):
    (here / "all").mkdir()
    (here / "base").rename(here / "all" / "base")
    (here / "all" / LOCK).write_text("{}")
    assert "holds" in refused("E316", check_free, here / "all", force=True,
                              inputs=[here / "all" / "base"])  # fmt: skip


def test_exports_of_an_artifact_lie_in_it(here):
    for name in ("onnx", "torchscript"):
        check_free(here / "out" / name, force=True, inputs=(here / "out", here))
    check_free(here / "new", inputs=(here,))  # nothing is there to be lost


@pytest.mark.parametrize(
    ("made", "ours"),
    [
        ((LOCK,), True), ((EXPORT,), True), ((DEMO,), True), (("a.txt",), False),
        (("config.pbtxt", f"1/{EXPORT}"), True), (("config.pbtxt",), False),
        ((f"lora/{LOCK}", f"houlsby/{LOCK}"), False), (("run.json",), False),
    ],
)  # fmt: skip
def test_only_outputs_are_replaced(tmp_path, made, ours):
    out = tmp_path / "out"
    for name in made:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")
    assert is_output(out) is ours
    refused("E306", check_free, out)
    if ours:
        check_free(out, force=True)
    else:
        assert made[0].split("/")[0] in refused("E318", check_free, out, force=True)


@pytest.mark.parametrize(
    ("text", "ours"),
    [("peftc: 1\nname: n\n", True), ('{"kind": "peftc plan"}', True), ("", True),
     ("import peftc\n", False), ("text,label\n", False)],
)  # fmt: skip
def test_only_files_of_ours_are_replaced(tmp_path, text, ours):
    path = tmp_path / "file"
    path.write_text(text)
    refused("E306", write_text, path, "new")
    if ours:
        write_text(path, "new", force=True)
    else:
        assert f"a file of {len(text)} bytes" in refused(
            "E318", write_text, path, "new", force=True
        )
    assert path.read_text() == ("new" if ours else text)
    refused("E316", check_absent, path, force=True, inputs=("lora", path))


def test_no_device_or_folder_is_replaced_by_a_file(tmp_path):
    assert "no regular file" in refused("E318", write_text, "/dev/null", "new", force=True)
    assert "is a folder" in refused("E318", write_text, tmp_path, "new", force=True)
    os.mkfifo(tmp_path / "pipe")
    refused("E318", write_text, tmp_path / "pipe", "new", force=True)


def test_places_that_no_output_can_have(here, monkeypatch):
    loop = here / "loop"
    loop.symlink_to(loop)
    for out, code in (
        (".", "E506"), ("..", "E506"), ("/", "E506"), ("", "E506"), ("/proc", "E506"),
        ("n" * 256, "E503"), ("x/" * 2100 + "x", "E503"), (loop, "E503"), ("a\0b", "E503"),
        (here / "base" / "model.safetensors" / "out", "E503"), ("/proc/out", "E503"),
    ):  # fmt: skip
        refused(code, lambda out=out: staged(out, force=True).__enter__())
    for file, code in (("n" * 256, "E503"), (loop, "E503"), ("no/such/folder", "E503")):
        refused(code, write_text, file, "text", force=True)
    assert list((here / "work").iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 253, "n" * 255, "ü" * 127, "a\nb", "-o", "a b"])
def test_every_name_that_a_folder_can_have(here, name):
    for force in (False, True):
        with staged(name, force=force) as new:
            (new / LOCK).write_text("{}")
    write_text(f"{name[:-1]}2", "text")
    assert sorted(os.listdir(here / "work")) == sorted([name, f"{name[:-1]}2"])


# Without root's rights. What it is asked to write is said to have been refused, and was.
NOBODY = """
import os, sys
from pathlib import Path
from peftc.ground.diagnostics import PeftcError
from peftc.ground.output.staging import staged
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    with staged(Path(sys.argv[1]), force=True) as new:
        (new / "peftc.lock.json").write_text("new")
except PeftcError as refusal:
    print(refusal.diagnostics[0].code, refusal.diagnostics[0].message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes folders of other users")
def test_a_foreign_owners_folder_is_refused_before_it_is_replaced(tmp_path):
    for folder in tmp_path.parents:
        if folder.stat().st_mode & 0o5 != 0o5 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o5)
    cases = {"theirs": 0o755, "inner": 0o777, "sticky": 0o1777}
    for name, mode in cases.items():
        home = tmp_path / name
        out = home / "out"
        (out / "deep").mkdir(parents=True)
        (out / "deep" / "file").write_text("old")
        (out / LOCK).write_text("old")
        out.chmod(mode)
        home.chmod(0o777)
    (tmp_path / "readonly").mkdir()
    for name in (*cases, "readonly"):
        out = tmp_path / name / "out"
        done = subprocess.run([sys.executable, "-c", NOBODY, out], capture_output=True, text=True)
        assert done.stdout.startswith("E503 "), (name, done.stdout, done.stderr)
        if name != "readonly":
            assert ((out / LOCK).read_text(), os.listdir(out.parent)) == ("old", ["out"])
    assert os.listdir(tmp_path / "readonly") == []
