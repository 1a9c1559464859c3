"""Signals that end a program: each an exception, so that what is half written is removed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# A closed terminal, Ctrl-C, and what schedulers and `kill` send.
ENDING = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name)
)


class Ended(KeyboardInterrupt):
    """The program was told to end by a signal, which `number` is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def heeded() -> list[signal.Signals]:
    """The signals that end this process: not those it was started to ignore, as `nohup` does."""
    return [s for s in ENDING if signal.getsignal(s) is not signal.SIG_IGN]


@contextmanager
def ending() -> Iterator[list[int]]:
    """Within, a signal that ends the process raises `Ended` first; a list of those that came.

    Outside the main thread signals stay what they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    told: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        without_terminal(number)
        told.append(number)
        raise Ended(number)

    before = {s: signal.signal(s, handle) for s in heeded()}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def without_terminal(number: int) -> None:
    """After the terminal was closed, write nowhere: a write to it would fail in the midst of it."""
    if number != getattr(signal, "SIGHUP", None):
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            descriptor = stream.fileno()
            if not answers(descriptor):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def answers(descriptor: int) -> bool:
    """Whether something can still be written: a file, a pipe, or a terminal that is there."""
    try:
        os.write(descriptor, b"")
        return os.isatty(descriptor) or not os.fstat(descriptor).st_rdev
    except OSError:
        return False
