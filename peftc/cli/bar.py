"""A progress bar on a terminal; a plain line now and then where it is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peftc.cli.console import console, note
from peftc.train.loop import Watcher

LINES = 10  # in all, where there is no terminal


@contextmanager
def training_bar(steps: int, *, silent: bool = False) -> Iterator[Watcher]:
    """Within, a function to call with (step, steps, loss)."""
    out = console(stderr=True)
    if silent:
        yield lambda step, steps, loss: None
        return
    if not out.is_terminal:

        def line(step: int, steps: int, loss: float | None) -> None:
            if step % max(1, steps // LINES) == 0:
                note(f"step {step}/{steps}" + (f"  loss {loss:.4f}" if loss is not None else ""))

        yield line
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as bar:
        task = bar.add_task("training", total=steps, loss="")

        def move(step: int, steps: int, loss: float | None) -> None:
            bar.update(task, completed=step, loss=f"loss {loss:.4f}" if loss is not None else "")

        yield move
