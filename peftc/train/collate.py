"""Examples of different lengths and tasks -> one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftc.capture.loss import IGNORED, LABELS
from peftc.capture.program import Program
from peftc.capture.tasks import TASK_IDS


class Collator:
    """Pads at the end; padding has no label.

    Where the graph has several tasks, `task_ids` says whose each row is, and the labels of each
    task, `labels_<task>`, count in its own rows alone.
    """

    def __init__(self, graph: Program, pad: int) -> None:
        self.signature = graph.signature
        self.names = {i.name for i in graph.signature.inputs}
        self.pad = pad

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack every input that the graph takes, and the labels."""
        batch = {
            name: self.stacked(name, [e[name] for e in examples])
            for name in examples[0]
            if name in self.names
        }
        if len(self.signature.tasks) < 2:
            labels = [n for n in LABELS if n in examples[0]]
            return batch | {n: self.stacked(n, [e[n] for e in examples]) for n in labels}
        tasks = [e.get("task") for e in examples]
        for task in dict.fromkeys(tasks):
            self.signature.for_task(task)  # refuses names that are no task's
            own = next(e for e in examples if e.get("task") == task)
            for name in (n for n in LABELS if n in own):
                none = [] if isinstance(own[name], list) else 0
                values = [e[name] if e.get("task") == task else none for e in examples]
                longest = max(len(e["input_ids"]) for e in examples)
                batch[f"{name}_{task}"] = self.stacked(name, values, longest)
        order = list(self.signature.tasks)
        return batch | {TASK_IDS: torch.tensor([order.index(str(t)) for t in tasks])}

    def stacked(self, name: str, values: list[Any], length: int = 0) -> Tensor:
        """One tensor of numbers, or of lists padded to the longest."""
        if not isinstance(values[0], list):
            return torch.tensor(values)
        fill = {"input_ids": self.pad, "labels": IGNORED}.get(name, 0)
        length = max(length, *map(len, values))
        return torch.tensor([v + [fill] * (length - len(v)) for v in values])
