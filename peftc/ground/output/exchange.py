"""A folder in the place of another, in one step where the system has one."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

NEW, OLD = "new", "old"  # in a staging folder: what is written, and what it takes the place of
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# What is said where the kernel or the file system has no such step.
MISSING = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def put(room: Path, place: Path) -> bool:
    """`room`/new becomes `place`; whether something else was there, which is now in `room`.

    Where two names cannot be exchanged in one step, there are two, and between them nothing is at
    `place`: `settle` finishes what was killed there.

    Raises:
        OSError: where it cannot; then `place` is what it was.
    """
    new, old = room / NEW, room / OLD
    if not place.is_dir() or not any(place.iterdir()):
        new.rename(place)
        return False
    if exchanged(new, place):
        return True
    try:
        place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not os.path.lexists(place):
            old.rename(place)
        raise
    return True


def settle(room: Path, place: Path) -> bool:
    """Finish an exchange that was killed between its two steps; whether there was one.

    Raises:
        OSError: where neither the new nor the old can be put there.
    """
    new, old = room / NEW, room / OLD
    if not (new.exists() and old.exists()) or os.path.lexists(place):
        return False
    with suppress(OSError):
        new.rename(place)
        return True
    old.rename(place)
    return True


def exchanged(one: Path, other: Path) -> bool:
    """Swap two names in one step, by `renameat2`; False where the system cannot.

    Raises:
        OSError: where it refuses.
    """
    if (rename := renameat2()) is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in MISSING:
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def renameat2() -> Any:
    """The C library's function; None where it has none."""
    try:
        found = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes = [
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
    ]  # fmt: skip
    return found
