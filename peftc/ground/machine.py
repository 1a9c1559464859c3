"""What the machine has and has not: disk, memory, and its failures as errors with a code."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from peftc.ground.diagnostics import PeftcError, error

FULL = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP, errno.EIO, errno.EMFILE,
)  # fmt: skip
# How allocators say what they wanted: torch on the CPU, torch on a GPU.
WANTED = re.compile(r"[Tt]ried to allocate (?P<count>[\d.]+) (?P<unit>bytes|KiB|MiB|GiB)")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")
NO_SPACE = ("No space left on device", "PytorchStreamWriter failed writing")


def size(count: float) -> str:
    """Bytes for people: "438 MB", "3.9 GB"."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            number = count / step
            return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{count:.0f} bytes"


def standing(path: Path) -> Path:
    """The nearest folder above `path`, or itself, that exists."""
    path = Path(path).absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def free_disk(path: Path) -> int:
    """Bytes that can be written at a place, which need not exist yet."""
    return shutil.disk_usage(standing(path)).free


def free_memory() -> int | None:
    """Bytes of memory that a process can still get; None where the system does not say."""
    found = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found += [int(t.split()[1]) * 1024 for t in file if t.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit.isdigit():
            used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")
            found.append(max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass  # not Linux, or no limit of its own: what was found so far is the answer
    return min(found, default=None)


def check_disk(
    place: Path, needed: int, what: str, *, parts: str = "", help: tuple[str, ...] = ()
) -> None:
    """Refuse to start what will not fit.

    Raises:
        PeftcError: E501, with what is needed and what is free.
    """
    free = free_disk(place)
    if needed > free:
        raise error(
            "E501",
            f"{what} needs {size(needed)} in {standing(place)}"
            f"{f' ({parts})' if parts else ''}, {size(free)} free",
            help=help or ("--out on another disk",),
        )


def no_memory(needed: int | None) -> PeftcError:
    """E505: what was wanted, and what there is."""
    free = free_memory()
    sizes = [f"{size(needed)} needed"] if needed is not None else []
    sizes += [f"{size(free)} free"] if free is not None else []
    return error(
        "E505",
        "this does not fit in memory" + (f": {', '.join(sizes)}" if sizes else ""),
        help=("a smaller --batch or --length for training", "--dtype bfloat16 halves the weights"),
    )


def machine_error(cause: BaseException, place: Path | None = None) -> PeftcError | None:
    """A failure of disk or memory as an error with a code; None for any other.

    `place` is what was being written.
    """
    text = str(cause)
    number = cause.errno if isinstance(cause, OSError) else None
    if number in FULL or any(t in text for t in NO_SPACE):
        where = place or getattr(cause, "filename", None) or Path.cwd()
        return error(
            "E504",
            f"the disk of {where} is full: {size(free_disk(Path(where)))} free",
            notes=("nothing there was replaced: what is half written has been removed",),
            help=("--out on another disk",),
        )
    if isinstance(cause, MemoryError) or any(t in text for t in NO_MEMORY):
        found = WANTED.search(text)
        needed = int(float(found["count"]) * UNITS[found["unit"]]) if found else None
        return no_memory(needed)
    if number in UNUSABLE:
        where = getattr(cause, "filename", None) or place or "a file"
        return error(
            "E503",
            f"cannot use {os.fspath(where)}: {os.strerror(number)}",
            help=("give another path",),
        )
    return None
