"""An output is the old one or the new one, whole, wherever its writer is killed or fails."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path

import kills
import pytest

from peftc.ground.diagnostics import PeftcError
from peftc.ground.output import exchange, recover, staging, tree
from peftc.ground.output.claim import claimed
from peftc.ground.output.guard import LOCK
from peftc.ground.output.recover import recovered, sweep
from peftc.ground.output.staging import room_in, staged
from peftc.ground.output.text import write_text

OLD, NEW = {LOCK: "old", "a/b": "old"}, {LOCK: "new", "c": "new"}


def made(folder: Path, files: dict[str, str]) -> Path:
    """A folder with these files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def held(folder: Path) -> dict[str, str]:
    """The files of a folder."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(params=["exchanged", "in two steps"])
def system(request, monkeypatch):
    """With and without a way to exchange two names in one step."""
    if request.param == "exchanged":
        if exchange.renameat2() is None:
            pytest.skip("this system has none")
    else:
        monkeypatch.setattr(exchange, "renameat2", lambda: None)
    return request.param


@pytest.mark.parametrize("older", [{}, OLD])
def test_killed_at_every_change(tmp_path, system, older):
    out = tmp_path / "out"

    def write():
        with staged(out, force=True) as new:
            made(new, NEW)

    seen = set()
    for last in range(1, 1000):
        for path in tmp_path.iterdir():
            tree.remove(path)
        if older:
            made(out, older)
        if kills.changes(tmp_path, write, last=last) < last:
            break
        found = held(out) if recovered(out) or out.exists() else None
        assert found in ([older, NEW] if older else [None, NEW])
        with claimed(out):  # as any other writer
            pass
        assert names(tmp_path) == (["out"] if found is not None else [])
        assert (held(out) if out.exists() else None) == found
        seen.add(str(found))
    assert len(seen) == 2
    assert last > 20


def test_what_is_not_ours_is_never_touched(tmp_path):
    made(tmp_path, {
        "out.old/a": "mine", "out.partial/a": "mine", ".peftc-0123456789abcdef/a": "mine",
        ".peftc-fedcba9876543210/peftc.staging.json": '{"peftc": "no"}',
        ".peftc-fedcba9876543210/a": "mine", ".peftc-mine/a": "mine",
        "real/peftc.staging.json": '{"peftc": "staging"}',
    })  # fmt: skip
    (tmp_path / ".peftc-aaaaaaaaaaaaaaaa").symlink_to("real")
    before = held(tmp_path)
    with staged(tmp_path / "out") as new:
        made(new, NEW)
    assert {n: t for n, t in held(tmp_path).items() if not n.startswith("out/")} == before
    (tmp_path / "out" / LOCK).unlink()
    sweep(tmp_path)
    assert not recovered(tmp_path / "out.missing")
    assert names(tmp_path / "out") == ["c"]


def test_the_folder_of_a_living_process_is_left_alone(tmp_path):
    with room_in(tmp_path, "out") as room:
        (room / "new").mkdir()
        child = os.fork()
        if child == 0:
            sweep(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        assert (room / "new").is_dir()
    assert names(tmp_path) == []


def test_a_failing_rename_puts_the_old_output_back(tmp_path, monkeypatch, system):
    out, rename = made(tmp_path / "out", OLD), Path.rename

    def fail(self, target):
        if self.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    def swap(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "rename", fail)
    if system == "exchanged":
        monkeypatch.setattr(staging, "put", swap)
    match = r"error\[E503\]: cannot write to .*out: Input/output"
    with pytest.raises(PeftcError, match=match), staged(out, force=True) as new:
        made(new, NEW)
    assert held(out) == OLD
    assert names(tmp_path) == ["out"]


def test_folders_above_that_were_made_go_again(tmp_path):
    with pytest.raises(ValueError, match="why not"), staged(tmp_path / "a" / "b" / "out"):
        raise ValueError("why not")
    assert names(tmp_path) == []


def test_an_interrupted_replacement_of_a_folder_above_is_found(tmp_path):
    room = tmp_path / ".peftc-0123456789abcdef"
    made(room, {"new/runs/001/a": "new", "old/a": "old"})
    (room / recover.MARKER).write_text('{"peftc": "staging", "output": "out"}')
    assert recovered(tmp_path / "out" / "runs" / "001")
    assert held(tmp_path / "out") == {"runs/001/a": "new"}
    with claimed(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    base = tmp_path / "base"
    base.write_text("linked")
    base.chmod(0o600)
    with umask(mask):
        with staged(tmp_path / "out") as new:
            (new / "inner").mkdir(mode=0o700)
            for name, mode in (("a", 0o600), ("inner/b", 0o666), ("run.sh", 0o700)):
                (new / name).write_text("x")
                (new / name).chmod(mode)
            os.link(base, new / "linked")
        write_text(tmp_path / "plan.json", "{}")

    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    files = {n: mode(n) for n in ("out/a", "out/inner/b", "plan.json")}
    assert set(files.values()) == {0o666 & ~mask}
    assert {mode("out"), mode("out/inner"), mode("out/run.sh")} == {0o777 & ~mask}
    assert mode("out/linked") == 0o600


def test_a_replaced_folder_or_file_keeps_its_own_mode(tmp_path):
    out = made(tmp_path / "out", OLD)
    out.chmod(0o750)
    spec = tmp_path / "my.yaml"
    spec.write_text("peftc: 1\n")
    spec.chmod(0o640)
    with staged(out, force=True) as new:
        made(new, NEW)
    write_text(spec, "peftc: 1\nname: n\n", force=True)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (out, spec)] == [0o750, 0o640]


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order, fsync, put = [], os.fsync, staging.put
    monkeypatch.setattr(os, "fsync", lambda d: (order.append(os.fstat(d).st_ino), fsync(d)))
    monkeypatch.setattr(staging, "put", lambda *a: (order.append("put"), put(*a)))
    with staged(tmp_path / "out") as new:
        made(new, NEW)
        inodes = {p.stat().st_ino for p in (new, *new.rglob("*"))}
    assert inodes <= set(order[: order.index("put")])
    assert tmp_path.stat().st_ino in order[order.index("put") :]


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path):
    real = tmp_path / "elsewhere" / "real"
    for link, target in (("there", real), ("to-come", tmp_path / "to-be-made")):
        (tmp_path / link).symlink_to(target)
    made(real, OLD)
    for link in ("there", "to-come"):
        with staged(tmp_path / link, force=True) as new:
            made(new, NEW)
        assert (tmp_path / link).is_symlink()
        assert held(tmp_path / link) == NEW
    assert names(tmp_path) == ["elsewhere", "there", "to-be-made", "to-come"]
    assert names(real.parent) == ["real"]
    spec = tmp_path / "elsewhere" / "my.yaml"
    (tmp_path / "spec").symlink_to(spec)
    write_text(tmp_path / "spec", "peftc: 1\n")
    assert (spec.read_text(), (tmp_path / "spec").is_symlink()) == ("peftc: 1\n", True)


def test_a_file_that_appeared_in_the_meantime_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    flush = tree.flush_one

    def late(place):
        path.write_text("theirs")
        flush(place)

    monkeypatch.setattr("peftc.ground.output.text.flush_one", late)
    with pytest.raises(PeftcError, match=r"error\[E306\]: .*plan.json exists"):
        write_text(path, "ours")
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["plan.json"]
