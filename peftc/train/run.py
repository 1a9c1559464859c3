"""The folder of a training run: its settings, its events, its checkpoints, and what it made."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from peftc.artifact.folder import write_artifact
from peftc.capture.program import Program
from peftc.ground.diagnostics import error
from peftc.ground.files import FORMAT, sha256
from peftc.ground.output.claim import Busy, claimed
from peftc.ground.output.guard import RUN
from peftc.ground.output.place import place_of
from peftc.ground.output.recover import recovered, sweep
from peftc.ground.output.staging import staged
from peftc.ground.records import Record, Sha256, read_record
from peftc.train.settings import Settings

EVENTS = "events.jsonl"


class RowFile(Record):
    """A file of rows: its task, where there are several, its place and its contents."""

    task: str | None = None
    path: str
    sha256: Sha256


class Run(Record):
    """What `--resume` needs to know of a run."""

    format_version: Literal["1.0"]
    finished: bool
    artifact: str
    files: dict[Literal["train", "eval"], list[RowFile]]
    settings: Settings


@contextmanager
def new_run(artifact: Path, name: str | None) -> Iterator[Path]:
    """The folder of a new run, to be made beside the other runs of the same artifact.

    Within, no other process gets the same: of several that start at once each has its own number.

    Raises:
        PeftcError: E008 where `name` is no name of a folder, E306 where it is taken, E317 where
            another process is about to take it.
    """
    home = artifact.parent if artifact.parent.name == "runs" else artifact / "runs"
    sweep(home)
    if name is not None:
        if not name or Path(name).name != name or name.startswith("."):
            raise error("E008", f"--name {name}: a name without folders, not beginning with a dot")
        with claimed(home / name):
            if (home / name).exists():
                raise error("E306", f"{home / name} exists", help=("give another --name",))
            yield home / name
        return
    numbers = [int(p.name) for p in home.glob("*") if p.name.isdigit()]
    for number in itertools.count(max(numbers, default=0) + 1):
        run = home / f"{number:03d}"
        with ExitStack() as stack:
            try:
                place = stack.enter_context(claimed(run))
            except Busy as refusal:
                if refusal.place != place_of(run):
                    raise
                continue
            if not place.exists():
                yield run
                return


def start_run(
    run: Path,
    artifact: Path,
    files: Mapping[str, Sequence[tuple[str | None, Path]]],
    settings: Any,
) -> None:
    """Make a run's folder, with all that `--resume` needs.

    `files` are the files of rows by what they are for, each with the task that its rows are of.

    Raises:
        PeftcError: E503 where it cannot be written.
    """
    facts = {
        "format_version": FORMAT,
        "finished": False,
        "artifact": os.path.relpath(artifact.resolve(), run.resolve()),
        "files": {k: [{"task": t, **described(p)} for t, p in v] for k, v in files.items()},
        "settings": settings,
    }
    with staged(run) as partial:
        (partial / RUN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def described(path: Path) -> dict[str, str]:
    """A file by its place and its contents."""
    return {"path": str(path.resolve()), "sha256": sha256(path)}


def unfinished(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The run to resume, and its facts: `folder` itself, or the newest unfinished of an artifact.

    Raises:
        PeftcError: E305 where there is none, or where its rows have changed since.
    """
    recovered(folder)
    sweep(folder / "runs")
    if (folder / RUN).is_file():
        candidates = [folder]
    else:
        candidates = sorted((folder / "runs").glob(f"*/{RUN}"), key=lambda p: p.stat().st_mtime)
        candidates = [p.parent for p in reversed(candidates)]
    for run in candidates:
        found = read_record(run / RUN, Run, "training run", "peftc train DIR --data train.jsonl")
        if not found.finished:
            facts = found.model_dump()
            check_rows(run, facts)
            return run, facts
    what = f"{folder} is finished" if folder in candidates else f"{folder} has no unfinished run"
    raise error(
        "E305",
        f"nothing to resume: {what}",
        help=(f"a new run: peftc train {shlex.quote(str(folder))} --data train.jsonl",),
    )


def check_rows(run: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with other rows than the run began with."""
    for file in (f for files in facts["files"].values() for f in files):
        path = Path(file["path"])
        if not path.is_file() or sha256(path) != file["sha256"]:
            raise error(
                "E305",
                f"{run} cannot be resumed: {path} "
                + ("has changed" if path.is_file() else "is not there any more"),
                help=("put the file back, or start a new run",),
            )


def end_run(graph: Program, run: Path, *, finished: bool) -> None:
    """Write what training made into the run's folder; its checkpoints stay if it is unfinished."""
    with staged(run, force=True) as partial:
        write_artifact(graph, partial)
        facts = json.loads((run / RUN).read_text(encoding="utf-8"))
        facts["finished"] = finished
        (partial / RUN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if (run / EVENTS).is_file():
            shutil.copy2(run / EVENTS, partial / EVENTS)
        for checkpoint in () if finished else run.glob("checkpoint-*"):
            shutil.copytree(checkpoint, partial / checkpoint.name)


def note_event(run: Path, **event: Any) -> None:
    """Add a line to the run's events."""
    with open(run / EVENTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
