"""One writer at a time: a lock for each output, which dies with its process."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peftc.ground.diagnostics import Diagnostic, PeftcError
from peftc.ground.output.hold import HELD, Held, hold, lives, read_json
from peftc.ground.output.place import check_replaceable, place_of, unwritable
from peftc.ground.output.recover import LOCK, recovered, sweep

PATIENCE = 2.0  # seconds; who removes what was left behind holds a lock for a moment
CLAIMED: dict[Path, int] = {}  # the locks that this process has, and the thread of each


class Busy(PeftcError):
    """E317: another process, or another thread of this one, writes to `place`."""

    def __init__(self, folder: Path, place: Path) -> None:
        lock = lock_of(place)
        holder = read_json(lock)
        what = "to it" if place == place_of(folder) else f"to {place}"
        pid, host = holder.get("pid"), holder.get("host")
        who = f"process {pid} on {host}" if pid else "another process"
        help = ["wait until it has ended, or give another folder with -o"]
        if (beside := lock.with_name(lock.name + HELD)).exists():
            help.append(f"if it no longer runs, remove {beside}")  # another machine cannot tell
        super().__init__(
            [Diagnostic("E317", f"{folder} is being written: {who} writes {what}", help=(*help,))]
        )
        self.place = place


@contextmanager
def claimed(folder: str | Path) -> Iterator[Path]:
    """The absolute path of an output, of which nobody else is a writer within.

    What killed writers left beside it is finished or removed first. Folders above it are made, and
    go again if nothing was put there. A thread may claim twice what it has.

    Raises:
        PeftcError: E317 where another process writes to it, to a folder that it lies in, or to
            something in it, E503 where it cannot be written, E506 where it cannot be replaced.
    """
    folder = Path(folder)
    place = place_of(folder)
    check_replaceable(folder, place)
    lock = lock_of(place)
    if CLAIMED.get(lock) == threading.get_ident():
        yield place
        return
    new: list[Path] = []
    try:
        try:
            recovered(place.parent)  # rather than make it anew
            new = make_parents(place)
            sweep(place.parent)
            held = taken(lock)
        except OSError as cause:
            raise unwritable(folder, cause) from cause
        if held is None:
            raise Busy(folder, place)
        CLAIMED[lock] = threading.get_ident()
        try:
            check_alone(folder, place)
            yield place
        finally:
            del CLAIMED[lock]
            held.release()
    finally:
        for made in new:
            with suppress(OSError):
                made.rmdir()


def lock_of(place: Path) -> Path:
    """The lock file of an output, of a length that does not grow with the output's name."""
    name = hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]
    return place.parent / f".peftc-{name}.lock"


def make_parents(place: Path) -> list[Path]:
    """Make the folders above a place; those that were not there, the innermost first."""
    missing = [p for p in place.parents if not p.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    return missing


def taken(lock: Path) -> Held | None:
    """The lock; None where another process has it, but for one that only looks whether it is left.

    That one says nothing in the file, where a writer names itself.
    """
    end = time.monotonic() + PATIENCE
    while True:
        held = hold(lock, {"peftc": "lock"})
        if held is not None or lives(read_json(lock)) or time.monotonic() > end:
            return held
        time.sleep(0.02)


def check_alone(folder: Path, place: Path) -> None:
    """Refuse where the writer of a folder above, or of something inside, would be in the way."""
    for outer in place.parents:
        if outer.name and busy(lock_of(outer)):
            raise Busy(folder, outer)
    for here, folders, names in os.walk(place):
        for name in names:
            if LOCK.fullmatch(name) and busy(Path(here, name)):
                inside = [n for n in (*folders, *names) if lock_of(Path(here, n)).name == name]
                raise Busy(folder, Path(here, *inside[:1]) if inside else Path(here, "new"))


def busy(lock: Path) -> bool:
    """Whether another process has a lock."""
    if lock in CLAIMED:
        return False
    try:
        held = hold(lock, make=False)
    except OSError:
        return False  # there is none, or it is not ours to see
    if held is not None:
        held.release(remove=False)
    return held is None
