"""Where an output lies, and where there can be none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from peftc.ground.diagnostics import PeftcError, error
from peftc.ground.machine import FULL, machine_error


def place_of(path: str | Path) -> Path:
    """The absolute path of an output, links followed: a link stays, what it points to is written.

    Raises:
        PeftcError: E503 for a path that the file system does not take.
    """
    try:
        place = Path(os.path.realpath(path))
        try:
            if place.is_symlink():  # a circle of links: nothing to follow them to
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            place.lstat()
        except FileNotFoundError:
            pass  # to be made
    except (OSError, ValueError) as cause:
        raise unwritable(path, cause) from cause
    return place


def check_replaceable(folder: str | Path, place: Path) -> None:
    """Refuse a folder that cannot give way to another as a whole.

    Raises:
        PeftcError: E506 where it is the root of a file system, the folder that the command runs in,
            or one that this lies in.
    """
    try:
        here = Path(os.path.realpath(Path.cwd()))
    except OSError:  # it has been removed
        here = None
    if here is not None and (place == here or place in here.parents):
        what = "is" if place == here else "holds"
        raise error(
            "E506",
            f"{folder} {what} the folder that the command runs in",
            notes=(
                "an output replaces a whole folder: your shell would be left in one that is gone",
            ),
            help=("give a new folder in it: -o out",),
        )
    if os.path.ismount(place):
        raise error(
            "E506",
            f"{folder} is a mount point, which another folder cannot take the place of",
            help=(f"give a new folder in it: -o {Path(folder) / 'out'}",),
        )


def unwritable(path: str | Path, cause: BaseException) -> PeftcError:
    """What the file system says of a place that is to be written: E504 if it is full, else E503."""
    full = isinstance(cause, OSError) and cause.errno in FULL
    if full and (known := machine_error(cause, Path(path))) is not None:
        return known
    said = cause.strerror if isinstance(cause, OSError) else None
    return error(
        "E503", f"cannot write to {path}: {said or cause}", help=("give another path with -o",)
    )
