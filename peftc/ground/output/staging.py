"""A hidden folder to write into, and what is made in it becoming the output."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from peftc.ground.diagnostics import error
from peftc.ground.machine import machine_error
from peftc.ground.output.claim import claimed
from peftc.ground.output.exchange import NEW, put
from peftc.ground.output.guard import check_free
from peftc.ground.output.hold import Held, hold
from peftc.ground.output.place import unwritable
from peftc.ground.output.recover import MARKER, clear
from peftc.ground.output.tree import as_others, flush, flush_folder, undeletable


@contextmanager
def staged(
    folder: str | Path, *, force: bool = False, inputs: Sequence[str | Path | None] = ()
) -> Iterator[Path]:
    """A folder to write into, which takes `folder`'s place in one step when all went well.

    On any failure, Ctrl-C included, it goes and an older output stays. A killed process leaves it,
    and the next that writes beside removes it. `inputs` are what is read meanwhile.

    Raises:
        PeftcError: E306, E316 and E318 as `check_free`, E317 and E506 as `claimed`, E503 where it
            cannot be written, E504 where the disk became full, E507 where it was written and what
            it replaced cannot be removed.
    """
    folder = Path(folder)
    with claimed(folder) as place:
        check_free(folder, force=force, inputs=inputs)
        if place.is_dir() and (kept := undeletable(place)) is not None:
            raise error(
                "E503",
                f"cannot replace {folder}: what is in {kept} is not yours to remove",
                help=("choose another folder with -o",),
            )
        try:
            with room_in(place.parent, place.name) as room:
                new = room / NEW
                new.mkdir()
                yield new
                finish(room, place, folder)
                left = None
                try:
                    clear(room)
                except OSError as cause:
                    left = cause
            if left is not None:
                raise left_over(folder, room, left)
        except BaseException as cause:
            if (known := machine_error(cause, folder)) is not None:
                raise known from cause
            raise


def finish(room: Path, place: Path, folder: Path) -> None:
    """Put what was written in its place, which is called `folder`, whole and on the disk.

    Raises:
        PeftcError: E503 where it cannot be.
    """
    new = room / NEW
    try:
        mode = stat.S_IMODE(room.stat().st_mode)
        as_others(new, stat.S_IMODE((room / MARKER).stat().st_mode), mode)
        if place.is_dir():
            shutil.copymode(place, new)
        flush(new)
        flush_folder(room)
        put(room, place)
        flush_folder(place.parent)
    except OSError as cause:
        raise unwritable(folder, cause) from cause


def left_over(folder: Path, room: Path, cause: OSError) -> Exception:
    """E507: the output is there, and so is what it replaced."""
    return error(
        "E507",
        f"{folder} is written, but what it replaced cannot be removed: {cause.strerror or cause}",
        notes=(f"what is left of it lies in {room}",),
        help=(f"remove {room}",),
    )


@contextmanager
def room_in(parent: Path, output: str | None = None) -> Iterator[Path]:
    """A hidden folder in `parent`, known by its marker and held while it is used; gone afterwards.

    `output` is the name beside it that is to become what is written in it.

    Raises:
        OSError: where it cannot be made.
    """
    room, held = made(parent, output)
    try:
        yield room
    finally:
        with suppress(OSError):  # the next that writes here removes it
            clear(room)
        held.release(remove=False)  # what could not be removed keeps its marker


def made(parent: Path, output: str | None) -> tuple[Path, Held]:
    """A new folder with its marker, held."""
    while True:
        room = parent / f".peftc-{secrets.token_hex(8)}"
        room.mkdir()
        try:
            held = hold(room / MARKER, {"peftc": "staging", "output": output})
        except FileNotFoundError:
            continue  # taken for one left behind, in the moment before it had a marker
        except BaseException:
            with suppress(OSError):
                os.rmdir(room)
            raise
        if held is not None:
            return room, held
