"""Output folders that are whole or absent: written beside, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftc.diagnostics import error
from peftc.machine import machine_error

FORMAT = "1.0"  # of the JSON files that our folders are known by


@contextmanager
def staged(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder `<name>.partial` to write into, which takes `folder`'s place when all went well.

    On any failure, Ctrl-C included, the partial folder goes and an older output stays. A run that
    was killed leaves the partial folder, which the next run removes.

    Raises:
        PeftcError: E306 where `folder` exists, is not empty, and `force` is not given, E503 where
            it cannot be written, E504 where the disk became full.
    """
    folder = Path(folder)
    restore(folder)
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
    except BaseException as cause:
        shutil.rmtree(partial, ignore_errors=True)
        restore(folder)
        if (known := machine_error(cause, folder)) is not None:
            raise known from cause
        raise


def restore(folder: Path) -> None:
    """Put back an older output that a killed run had moved aside and not yet replaced."""
    old = folder.with_name(folder.name + ".old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


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


def check_takes(folder: Path, count: int = 1 << 20) -> None:
    """Raise the disk's own OSError where `count` bytes do not fit: torch's writers hide it."""
    probe = folder / ".peftc-probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(count))
    finally:
        probe.unlink(missing_ok=True)


def check_absent(path: Path, *, force: bool = False) -> None:
    """Refuse to overwrite a file.

    Raises:
        PeftcError: E306 where it exists and `force` is not given.
    """
    if path.exists() and not force:
        raise error(
            "E306", f"{path} exists", help=("choose another name, or overwrite it with --force",)
        )


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write one file, beside first and then renamed into place.

    Raises:
        PeftcError: E306 where it exists and `force` is not given, E503 where it cannot be written.
    """
    check_absent(path, force=force)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as cause:
        partial.unlink(missing_ok=True)
        raise error("E503", f"cannot write {path}: {cause.strerror or cause}") from cause


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_intact(folder: Path, hashes: Mapping[str, str], listed_in: str) -> None:
    """Refuse files that are not those whose hashes were written down.

    Raises:
        PeftcError: E303 for a missing or changed file.
    """
    for name, wanted in hashes.items():
        path = folder / name
        if not path.is_file():
            raise error("E303", f"{path} is missing", help=("copy the whole folder again",))
        if (found := sha256(path)) != wanted:
            raise error(
                "E303",
                f"{path} is damaged: sha256 is {found[:12]}, {listed_in} says {wanted[:12]}",
                notes=(f"the file has {path.stat().st_size:,} bytes",),
                help=("copy it again: a copy that stopped early looks like this",),
            )


def read_facts(
    path: Path, what: str, make: str, formats: tuple[str, ...] = (FORMAT,)
) -> dict[str, Any]:
    """The JSON that a folder of ours is known by; its values are not checked, only its format.

    Raises:
        PeftcError: E308 where it is not there or of another format, E303 where it is damaged.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(
            "E308",
            f"{path.parent} is no {what}: it has no {path.name}",
            help=(f"make one with `{make}`",),
        ) from cause
    except (ValueError, OSError, RecursionError) as cause:
        raise error("E303", f"{path} cannot be read: {cause}") from cause
    if not isinstance(facts, dict) or facts.get("format_version") not in formats:
        raise error("E308", f"{path} is not of format {' or '.join(formats)}")
    return facts
