"""Output folders that are whole or absent: written beside, then renamed into place."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftc.diagnostics import error


@contextmanager
def staged(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder `<name>.partial` to write into, which takes `folder`'s place when all went well.

    On any failure, Ctrl-C included, the partial folder goes and an older output stays.

    Raises:
        PeftcError: E306 where `folder` exists, is not empty, and `force` is not given.
    """
    folder = Path(folder)
    check_free(folder, force=force)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as cause:
        raise error(
            "E503",
            f"cannot write to {folder}: {cause.strerror or cause}",
            help=("give another folder with -o",),
        ) from cause
    try:
        yield partial
        if folder.exists():
            old = folder.with_name(folder.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_free(folder: Path, *, force: bool = False) -> None:
    """Refuse to overwrite.

    Raises:
        PeftcError: E306 where `folder` is a file, or holds something and `force` is not given.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not force):
        raise error(
            "E306",
            f"{folder} exists and is not empty",
            help=("choose another folder with -o, or overwrite it with --force",),
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
