"""The folder of a run: a number of its own for each, and found again after a kill."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from peftc.ground.diagnostics import PeftcError
from peftc.ground.files import FORMAT
from peftc.ground.output.guard import LOCK, RUN
from peftc.ground.output.recover import MARKER
from peftc.train.loop import checkpoints
from peftc.train.run import new_run, start_run, unfinished
from peftc.train.settings import Settings


@pytest.fixture
def artifact(tmp_path):
    """A folder that is known as an artifact, which is all that its runs need of it."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / LOCK).write_text("{}")
    return folder


def started(artifact, name=None):
    with new_run(artifact, name) as run:
        start_run(run, artifact, {}, {})
    return run


def test_runs_are_numbered_also_when_several_start_at_once(artifact):
    assert started(artifact).name == "001"
    code = (
        "import sys\nfrom pathlib import Path\nfrom peftc.train.run import new_run\n"
        "with new_run(Path(sys.argv[1]), None) as run:\n    print(run.name)"
    )

    def other():
        command = [sys.executable, "-c", code, str(artifact)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with new_run(artifact, None) as run:
        assert (run.name, other()) == ("002", "003")
        start_run(run, artifact, {}, {})
    assert started(artifact / "runs" / "001").name == "003"
    assert sorted(p.name for p in (artifact / "runs").iterdir()) == ["001", "002", "003"]


def test_nothing_is_left_of_a_run_that_did_not_begin(artifact):
    with pytest.raises(ValueError, match="no rows"), new_run(artifact, None):
        raise ValueError("no rows")
    assert [p.name for p in artifact.iterdir()] == [LOCK]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/tmp/x", ".hidden", "..", ""])
def test_a_name_is_one_folder_in_runs(artifact, name):
    with pytest.raises(PeftcError, match=r"error\[E008\]"), new_run(artifact, name):
        pass


def test_a_run_that_was_being_replaced_is_found_and_keeps_its_number(artifact):
    run = started(artifact)
    room = run.with_name(".peftc-0123456789abcdef")
    room.mkdir()
    (room / MARKER).write_text('{"peftc": "staging", "output": "001"}')
    run.rename(room / "old")
    (room / "new").mkdir()
    facts = {"format_version": FORMAT, "finished": False, "artifact": "../..", "files": {}}
    settings = Settings(epochs=7).to_json()
    (room / "new" / RUN).write_text(json.dumps({**facts, "settings": settings}))
    assert unfinished(run)[1]["settings"]["epochs"] == 7
    run.rename(room / "new")  # as it was, beside what it replaces
    assert started(artifact).name == "002"
    assert sorted(p.name for p in (artifact / "runs").iterdir()) == ["001", "002"]


def test_half_a_checkpoint_is_none(tmp_path):
    for step, state in ((4, '{"log_history": []}'), (10, '{"log_hist'), (12, ""), (8, "{}")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-14").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-4"]
