"""Files of our folders as they are read: known by their JSON, and compared with their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftc.ground.diagnostics import error
from peftc.ground.output.recover import recovered

FORMAT = "1.0"  # of the JSON files that our folders are known by


def check_takes(folder: Path, count: int = 1 << 20) -> None:
    """Raise the disk's own OSError where `count` bytes do not fit: torch's writers hide it."""
    probe = folder / ".peftc-probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(count))
    finally:
        probe.unlink(missing_ok=True)


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

    An interrupted replacement of the folder is finished.

    Raises:
        PeftcError: E308 where it is not there or of another format, E303 where it is damaged, E319
            where its replacement was interrupted and cannot be finished.
    """
    try:
        if not path.parent.exists():
            recovered(path.parent)
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
