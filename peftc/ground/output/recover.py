"""What a killed process left behind: finished or removed, and nothing else ever touched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from peftc.ground.diagnostics import error
from peftc.ground.output.exchange import NEW, OLD, settle
from peftc.ground.output.hold import HELD, hold, read_json, user
from peftc.ground.output.tree import remove

MARKER = "peftc.staging.json"  # the file that a staging folder is known by
ROOM = re.compile(r"\.peftc-[0-9a-f]{16}")
LOCK = re.compile(r"\.peftc-[0-9a-f]{16}\.lock")
HIDDEN = re.compile(rf"{ROOM.pattern}(\.lock({re.escape(HELD)})?)?")


def clear(room: Path) -> None:
    """Remove a staging folder, its marker last, so that it is known until nothing is left.

    Raises:
        OSError: where something in it cannot be removed.
    """
    for path in room.iterdir():
        if path.name not in (MARKER, MARKER + HELD):
            remove(path)
    for name in (MARKER, MARKER + HELD):
        (room / name).unlink(missing_ok=True)
    room.rmdir()


def sweep(folder: Path) -> None:
    """Finish and remove what killed processes of this user left in `folder`."""
    for path in own(folder):
        with suppress(OSError):
            if ROOM.fullmatch(path.name):
                abandoned(path)
            elif LOCK.fullmatch(path.name) and (held := hold(path, make=False)) is not None:
                held.release()


def own(folder: Path) -> Iterator[Path]:
    """What lies in a folder under names of ours, and belongs to this user."""
    with suppress(OSError):
        for name in os.listdir(folder):
            path = folder / name
            if HIDDEN.fullmatch(name) and not path.is_symlink():
                with suppress(OSError):
                    if path.lstat().st_uid == user():
                        yield path


def abandoned(room: Path) -> None:
    """Finish and remove one staging folder, unless its process still runs."""
    if not (room / MARKER).is_file():
        room.rmdir()  # killed before it had a marker: empty, or not ours
        return
    held = hold(room / MARKER, make=False)
    if held is None:
        return
    try:
        facts = read_json(room / MARKER)
        if facts.get("peftc") != "staging":
            if not {p.name for p in room.iterdir()} - {MARKER, MARKER + HELD}:
                clear(room)  # killed before its marker said anything
            return
        if isinstance(output := facts.get("output"), str) and Path(output).name == output:
            settle(room, room.parent / output)
        clear(room)
    finally:
        held.release(remove=False)  # what could not be removed keeps its marker


def recovered(path: Path) -> bool:
    """Whether an interrupted exchange was found for `path`, or a folder above it, and finished.

    For readers: the output is absent between the two steps of an exchange on systems that have
    none in one step.

    Raises:
        PeftcError: E319 where it was found, and this reader may not finish it.
    """
    place = Path(os.path.realpath(path))
    missing = next((p for p in (place, *place.parents) if p.parent.is_dir()), place)
    if missing.exists():
        return False
    for room in own_or_others(missing.parent):
        facts = read_json(room / MARKER)
        if facts.get("peftc") != "staging" or facts.get("output") != missing.name:
            continue
        if not ((room / NEW).exists() and (room / OLD).exists()):
            continue
        try:
            if (held := hold(room / MARKER, make=False)) is None:
                continue  # its process is just about to finish it
            try:
                if settle(room, missing):
                    return True
            finally:
                held.release(remove=False)
        except OSError as cause:
            raise error(
                "E319",
                f"{missing} is not there: its replacement was interrupted",
                notes=(f"it is whole in {room / NEW}, but cannot be moved: {cause.strerror}",),
                help=(f"as a user who may write there: mv {room / NEW} {missing}",),
            ) from cause
    return missing.exists()


def own_or_others(folder: Path) -> Iterator[Path]:
    """Staging folders in `folder`, of the user who owns `folder` or of this one."""
    with suppress(OSError):
        trusted = {user(), folder.stat().st_uid}
        for name in sorted(os.listdir(folder)):
            path = folder / name
            if ROOM.fullmatch(name) and path.lstat().st_uid in trusted:
                yield path
