"""One writer at a time: the second is refused, whoever was killed leaves no lock."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peftc.ground.diagnostics import PeftcError
from peftc.ground.output import claim, hold
from peftc.ground.output.claim import claimed
from peftc.ground.output.staging import staged

WRITER = """
import sys, time
from pathlib import Path
from peftc.ground.output.staging import staged
with staged(Path(sys.argv[1]), force=True) as new:
    (new / "peftc.lock.json").write_text("0" * 10)
    print("writing", flush=True)
    sys.stdin.readline()
    (new / "second").write_text("0" * 10)
"""


@pytest.fixture(params=["locks", "no locks"])
def system(request, monkeypatch):
    """File systems with locks, and without."""
    if request.param == "no locks":

        def refuse(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


class Other:
    """A writer in a process of its own, without this package's tests."""

    def __init__(self, out: Path, *, locks: bool = True) -> None:
        code = (
            WRITER
            if locks
            else "from peftc.ground.output import hold\nhold.fcntl = None\n" + WRITER
        )
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(out)], stdin=pipe, stdout=pipe, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "writing\n"

    def finish(self) -> int:
        self.process.communicate("\n")
        return self.process.returncode

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_second_writer_is_refused(tmp_path, system):
    out = tmp_path / "out"
    first = Other(out, locks=system == "locks")
    for inner in (out, tmp_path / "link", out / "runs" / "001", tmp_path / "x" / ".." / "out"):
        if inner.name == "link":
            inner.symlink_to(out)
        with pytest.raises(PeftcError, match=r"error\[E317\]") as caught, claimed(inner):
            pass
        assert f"process {first.process.pid} on " in str(caught.value)
    with claimed(tmp_path / "other"):
        pass
    (tmp_path / "link").unlink()
    assert first.finish() == 0
    assert names(out) == ["peftc.lock.json", "second"]
    with staged(out, force=True):
        pass
    assert names(tmp_path) == ["out"]


def test_a_writer_inside_is_in_the_way_of_one_of_the_whole(tmp_path, system):
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / "peftc.lock.json").write_text("{}")
    inner = Other(out / "runs" / "001", locks=system == "locks")
    match = r"error\[E317\].* writes to .*out/runs"
    with pytest.raises(PeftcError, match=match), staged(out, force=True):
        pass
    assert inner.finish() == 0
    with staged(out, force=True):
        pass
    assert names(tmp_path) == ["out"]
    assert names(out) == []


def test_a_killed_writer_is_in_nobodys_way(tmp_path, system):
    out = tmp_path / "out"
    Other(out, locks=system == "locks").kill()
    assert names(tmp_path)
    with claimed(tmp_path / "another"):  # any writer beside it cleans up
        pass
    assert names(tmp_path) == []


def test_a_process_elsewhere_cannot_be_told_from_a_living_one(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "PATIENCE", 0.0)
    monkeypatch.setattr(hold, "fcntl", None)
    out = tmp_path / "out"
    with claimed(out):
        pass
    beside = claim.lock_of(out).with_name(claim.lock_of(out).name + hold.HELD)
    beside.write_text('{"host": "elsewhere", "pid": 1, "started": "1"}')
    with pytest.raises(PeftcError, match=r"error\[E317\]") as caught, claimed(out):
        pass
    assert str(caught.value).endswith(f"if it no longer runs, remove {beside}")
    beside.write_text(f'{{"host": "{hold.own_process()["host"]}", "pid": {os.getpid()}}}')
    with claimed(out):  # the number is this process's own now, but another had it
        pass
    assert names(tmp_path) == []


def test_a_thread_may_claim_twice_and_another_not(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def other() -> str:
        try:
            with claimed(tmp_path / "out"):
                return "claimed"
        except PeftcError as refusal:
            return refusal.diagnostics[0].code

    with claimed(tmp_path / "out"), claimed(tmp_path / "out"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(other).result() == "E317"
    assert other() == "claimed"


def test_two_writers_at_twenty_offsets(tmp_path):
    """Of each pair one writes or both do, one after the other; never a mixture, and no litter."""
    code = """
import os, sys, time
from peftc.ground.output.staging import staged
from peftc.ground.diagnostics import PeftcError
def write(out, word, wait):
    time.sleep(wait)
    try:
        with staged(out, force=True) as new:
            for name in ("peftc.lock.json", "a", "b"):
                (new / name).write_text(word)
                time.sleep(0.01)
    except PeftcError as refusal:
        return refusal.diagnostics[0].code
    return "ok"
codes = []
for k in range(20):
    out = os.path.join(sys.argv[1], str(k), "out")
    os.makedirs(os.path.dirname(out))
    child = os.fork()
    if child == 0:
        said = write(out, "one", 0.0)
        open(out + "-said", "w").write(said)
        os._exit(0)
    said = write(out, "two", 0.004 * k)
    os.waitpid(child, 0)
    codes.append({open(out + "-said").read(), said})
    os.remove(out + "-said")
    assert len({open(os.path.join(out, n)).read() for n in ("peftc.lock.json", "a", "b")}) == 1
    assert os.listdir(os.path.dirname(out)) == ["out"], os.listdir(os.path.dirname(out))
assert all(c in ({"ok"}, {"ok", "E317"}) for c in codes), codes
assert {"ok", "E317"} in codes, codes
"""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 60


def test_who_only_looks_at_a_lock_is_in_nobodys_way(tmp_path):
    lock = claim.lock_of(tmp_path / "out")
    looking = hold.hold(lock, None)
    assert looking is not None
    timer = threading.Timer(0.3, looking.release)
    timer.start()
    with claimed(tmp_path / "out"):
        pass
    timer.join()
    assert names(tmp_path) == []
