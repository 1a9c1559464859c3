"""A signal that ends a command is an exception in it, so that nothing half written stays."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from peftc.ground.signals import Ended, ending, heeded
from peftc.train.interrupt import interruptible

# As `peftc apply` does: a verb that writes, under the program's own handling of signals.
VERB = """
import sys, time, types
from pathlib import Path
from peftc.cli import main
from peftc.cli.common import with_common
from peftc.cli.claim import claim
from peftc.ground.output.staging import staged
import typer

@with_common
def verb(out: Path) -> None:
    claim(out)
    with staged(out) as new:
        (new / "a").write_text("half")
        Path("ready").write_text("")
        time.sleep(60)

def build():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(verb)
    return app

main.build = build
sys.exit(main.run(sys.argv[1:]))
"""


def wait_for(path, process) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_a_signal_leaves_nothing(tmp_path, name):
    number = getattr(signal, name)
    process = subprocess.Popen(
        [sys.executable, "-c", VERB, "deep/out"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "ready", process)
    process.send_signal(number)
    assert process.communicate()[1] == "interrupted\n"
    assert process.returncode == 128 + number
    assert [p.name for p in tmp_path.iterdir()] == ["ready"]


def test_nohup_is_obeyed(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending():
            os.kill(os.getpid(), signal.SIGHUP)
        with interruptible() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping()
        assert signal.SIGHUP not in heeded()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_training_is_asked_to_stop_once_and_ended_the_second_time(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with interruptible() as stopping:
        os.kill(os.getpid(), number)
        assert stopping()
        with pytest.raises(Ended) as caught:
            os.kill(os.getpid(), number)
    assert caught.value.number == number
    assert signal.getsignal(number) is before


CLOSED = """
import sys, time
from pathlib import Path
from peftc.train.interrupt import interruptible
with interruptible() as stopping:
    Path("ready").write_text("")
    while not stopping():
        time.sleep(0.01)
    print("a progress bar", flush=True)
    print("an error", file=sys.stderr, flush=True)
    Path("saved").write_text("")
"""


def test_a_closed_terminal_does_not_keep_a_run_from_being_saved(tmp_path):
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", CLOSED])
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "saved").exists()
