"""Ctrl-C and its kin during training: the step is finished and saved, then the loop ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from peftc.ground.signals import Ended, heeded, without_terminal


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, a function that says whether a signal came; a second one ends at once.

    These are Ctrl-C, `kill`, and the end of the terminal that the run was started from. Outside the
    main thread signals stay what they are, and the answer is always no.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number: int, frame: FrameType | None) -> None:
        without_terminal(number)
        if asked:
            raise Ended(number)
        asked.append(number)

    before = {s: signal.signal(s, handle) for s in heeded()}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
