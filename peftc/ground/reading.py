"""Reading files that others named: regular files only, and no more of them than is wanted."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# A FIFO that took the file's place after it was looked at is not waited for.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def opened(path: Path) -> BinaryIO:
    """A regular file, opened to read its bytes.

    Raises:
        OSError: where it cannot be read, or is a folder, a FIFO, a socket or a device: to open
            some of these is to wait for ever, or to change something.
    """
    check_regular(os.stat(path), path)
    number = os.open(path, FLAGS)
    try:
        check_regular(os.fstat(number), path)
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def check_regular(found: os.stat_result, path: Path) -> None:
    """Refuse what is no regular file."""
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def first_bytes(path: Path, count: int) -> bytes:
    """The first `count` bytes of a regular file; files of /proc say that they have none.

    Raises:
        OSError: as `opened`.
    """
    with opened(path) as file:
        return file.read(count) or b""
