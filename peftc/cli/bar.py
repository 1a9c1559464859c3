"""Training as it goes: a line that moves on a terminal, a plain line a log step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from peftc.cli.console import console, note
from peftc.train.loop import Moment, Watcher, leading

BAR = 26  # columns


@contextmanager
def training_bar(steps: int, *, silent: bool = False) -> Iterator[Watcher]:
    """Within, a function to call with every `Moment` of training."""
    out, start, first = console(stderr=True), time.monotonic(), []

    def eta(moment: Moment) -> float:
        first.append(moment.step) if not first else None
        done = moment.step - first[0]
        left = moment.steps - moment.step
        return left * (time.monotonic() - start) / done if done > 0 else 0.0

    if silent:
        yield lambda moment: None
        return
    if not out.is_terminal:

        def line(moment: Moment) -> None:
            seconds = eta(moment)
            if moment.event == "log":
                note(described(moment, seconds))
            elif moment.event == "eval":
                found = "  ".join(f"dev {n} {v:.3f}" for n, v in moment.metrics.items())
                note(f"step {moment.step:>5}/{moment.steps}  {found}")

        yield line
        return
    with Live(console=out, transient=False, auto_refresh=False) as live:

        def move(moment: Moment) -> None:
            seconds = eta(moment)
            text = Text(described(moment, seconds), no_wrap=True, overflow="ellipsis")
            bar = ProgressBar(total=steps, completed=moment.step, width=BAR)
            row = Table.grid(padding=(0, 3))
            row.add_row(text, bar)
            wide = out.width >= text.cell_len + BAR + 3
            live.update(row if wide else Group(text, bar), refresh=True)

        yield move


def described(moment: Moment, seconds: float) -> str:
    """One line: `step  400/2105  loss 0.312  dev f1 0.884  1,240 tok/s  GPU 2.3 GB  eta 3:10`."""
    parts = [f"step {moment.step:>5}/{moment.steps}"]
    if moment.loss is not None:
        parts.append(f"loss {moment.loss:.3f}")
    if moment.metrics:
        name = leading(moment.metrics)
        parts.append(f"dev {name} {moment.metrics[name]:.3f}")
    if moment.rate:
        parts.append(f"{moment.rate:,.0f} tok/s")
    if memory := gpu_bytes():
        parts.append(f"GPU {memory / 1e9:.1f} GB")
    parts.append(f"eta {clock(seconds)}")
    return "  ".join(parts)


def gpu_bytes() -> int:
    """The most GPU memory that tensors took so far; 0 without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
