"""A file that one process holds, until it lets go of it or ends."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: the process that holds a file is written beside it
    fcntl = None  # type: ignore[assignment]

# What file systems say that have no locks: some of networks, some in user space.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
HELD = ".held"  # the name of the file beside, where there are no locks


@dataclass(frozen=True)
class Held:
    """A held file: its open descriptor is the lock, and the system drops both with the process."""

    path: Path
    descriptor: int
    beside: Path | None = None

    def release(self, *, remove: bool = True) -> None:
        """Let go; with `remove` the file goes too, before anybody else can hold it."""
        with suppress(OSError):
            if remove and os.path.samestat(os.fstat(self.descriptor), self.path.lstat()):
                self.path.unlink()
        if self.beside is not None:
            self.beside.unlink(missing_ok=True)
        os.close(self.descriptor)


def hold(path: Path, facts: dict[str, Any] | None = None, *, make: bool = True) -> Held | None:
    """Hold a file, with `facts` and who holds it written into it; None where another does.

    Without `make` the file is to exist already, and what it says stays.

    Raises:
        OSError: where it cannot be opened.
    """
    while True:
        descriptor, writable = opened(path, make=make)
        try:
            held = locked(path, descriptor)
            if held is None:
                os.close(descriptor)
                return None
            if same_file(descriptor, path):
                if facts is not None and writable:
                    text = json.dumps({**facts, **own_process()}) + "\n"
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, text.encode())
                return held
        except BaseException:
            os.close(descriptor)
            raise
        held.release(remove=False)  # its last holder removed it in between


def opened(path: Path, *, make: bool) -> tuple[int, bool]:
    """A file's descriptor, and whether it can be written: one that another user left can be read.

    Raises:
        OSError: where it cannot be opened.
    """
    try:
        made = os.O_CREAT if make else 0
        return os.open(path, os.O_RDWR | NO_LINKS | made, 0o666), True
    except PermissionError:
        return os.open(path, os.O_RDONLY | NO_LINKS), False


def locked(path: Path, descriptor: int) -> Held | None:
    """The lock on an open file; None where another process has it."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Held(path, descriptor)
    except BlockingIOError:
        return None
    except OSError as cause:
        if cause.errno not in NO_LOCKS:
            raise
    beside = path.with_name(path.name + HELD)
    while True:
        try:
            with open(beside, "x", encoding="utf-8") as file:
                json.dump(own_process(), file)
            return Held(path, descriptor, beside)
        except FileExistsError:
            if lives(read_json(beside)):
                return None
            beside.unlink(missing_ok=True)


def same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it cannot be read, or was not yet written whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def user() -> int:
    """The number of this user, as files have it."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def own_process() -> dict[str, Any]:
    """This process, as another on this machine or elsewhere can tell it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}


def started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did, so that a number used again is told."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def lives(holder: dict[str, Any]) -> bool:
    """Whether the process that a file names may still run: one elsewhere may."""
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it runs, as somebody else
    return started(pid) == holder.get("started")
