"""A folder's files as a whole: on the disk, readable as others are, removable."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from peftc.ground.output.hold import user


def flush(folder: Path) -> None:
    """Have every file and folder in `folder` on the disk, not only in the system's memory.

    Raises:
        OSError: where the disk fails.
    """
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(path := os.path.join(here, name)):
                flush_one(path)
        flush_folder(here)


def flush_folder(path: str | Path) -> None:
    """Have a folder's names on the disk, where its file system can."""
    with suppress(OSError):  # some have no such call for folders
        flush_one(path)


def flush_one(path: str | Path) -> None:
    """Have one file on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_others(folder: Path, file: int, inner: int) -> None:
    """Give what is in `folder` the modes that the umask gives: `file` and `inner`, of a folder.

    Some writers make files that only their owner may read, which a server then cannot. A file with
    other names as well is somebody else's, and stays as it is.
    """
    for here, folders, names in os.walk(folder):
        for name in folders:
            if not os.path.islink(path := os.path.join(here, name)):
                os.chmod(path, inner)
        for name in names:
            path = os.path.join(here, name)
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                runs = file | (file & 0o444) >> 2 if found.st_mode & 0o100 else file
                if stat.S_IMODE(found.st_mode) != runs:
                    os.chmod(path, runs)


def undeletable(folder: Path) -> Path | None:
    """The first folder in `folder`, or itself, of which this user may not remove the contents."""
    for here, _, _ in os.walk(folder):
        if not os.access(here, os.W_OK | os.X_OK | os.R_OK):
            return Path(here)
        found = os.stat(here)
        owners = {0, found.st_uid}
        if found.st_mode & stat.S_ISVTX and user() not in owners and os.listdir(here):
            return Path(here)
    return None


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it.

    Raises:
        OSError: where something of it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
