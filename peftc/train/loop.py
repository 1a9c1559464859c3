"""The training loop: transformers' Trainer over the trainable tensors of a graph."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peftc.artifact.base import weight_hashes
from peftc.capture.program import Program
from peftc.capture.trace import quiet
from peftc.ground.diagnostics import error
from peftc.ground.output.hold import read_json
from peftc.rewrite.applied import trainable
from peftc.train.collate import Collator
from peftc.train.data import Rows
from peftc.train.evaluate import evaluate, leading
from peftc.train.interrupt import interruptible


@dataclass(frozen=True)
class Moment:
    """Where training stands: after a step, at a log step, or after an evaluation."""

    step: int
    steps: int
    loss: float | None = None  # mean since the last log step
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    rate: float = 0.0  # tokens a second, padding not counted
    event: str = "step"  # step, log or eval


Watcher = Callable[[Moment], None]


@dataclass
class Result:
    """What training did: the losses by step, the best evaluation, and whether it was stopped."""

    steps: int
    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    best: tuple[int, str, float] | None = None  # step, metric, value: what the graph now holds
    interrupted: bool = False


def train(
    graph: Program,
    rows: Rows,
    *,
    pad: int,
    steps: int,
    batch: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    watch: Watcher | None = None,
    held_out: Rows | None = None,
    every: int | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> Result:
    """Train what has gradients, in place; the frozen base is bit-identical afterwards.

    AdamW with a linear decay to zero after 6 % warm-up. With `held_out` the graph is evaluated
    `every` so many steps (a tenth of them by default) and ends as it was at its best. With
    `folder` the same steps leave checkpoints there, of the trained tensors and the optimiser
    alone, and `resume` goes on from the last one to the result that an uninterrupted run has.
    Ctrl-C finishes the step, saves, and ends the loop.

    Raises:
        PeftcError: E403 without accelerate, E108 where nothing is trainable, E305 where there is
            no checkpoint to resume, E303 where it is damaged.
        RuntimeError: where a frozen weight changed, which is a fault of this package.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise error("E403", "training needs accelerate", help=("pip install 'peftc[train]'",))
    if not trainable(graph):
        raise error(
            "E108",
            "the graph has nothing to train",
            help=("add an insertion or `unfreeze` to the spec",),
        )
    from peftc.train.trainer import GraphTrainer, Steps, check_checkpoint

    result, meter = Result(0), Meter(Collator(graph, pad))

    def evaluation() -> dict[str, float]:
        return evaluate(graph, held_out, pad=pad) if held_out is not None else {}

    def tell(state: Any, event: str) -> None:
        result.steps = state.global_step
        if watch is not None:
            loss = result.losses[-1][1] if result.losses else None
            metrics = result.evaluations[-1][1] if result.evaluations else {}
            watch(Moment(state.global_step, steps, loss, metrics, meter.rate(), event))

    def on_log(state: Any, logs: dict[str, float]) -> None:
        if "loss" in logs:
            result.losses.append((state.global_step, float(logs["loss"])))
            tell(state, "log")
        elif found := {n.removeprefix("eval_"): v for n, v in logs.items() if n[:5] == "eval_"}:
            result.evaluations.append((state.global_step, found))
            tell(state, "eval")

    metric = leading(evaluation()) if held_out is not None else None
    before = weight_hashes(graph)
    with (
        tempfile.TemporaryDirectory(prefix="peftc-train-") as scratch,
        quiet(),
        interruptible() as stopping,
    ):
        place = folder or Path(scratch)
        checkpoint = last_checkpoint(place) if resume else None
        trainer = GraphTrainer(
            evaluation=evaluation,
            model=graph,
            args=arguments(place, graph, steps, batch, lr, seed, every, metric, folder is not None),
            train_dataset=rows,
            eval_dataset=held_out,
            data_collator=meter,
            callbacks=[Steps(lambda state: tell(state, "step"), on_log, stopping)],
        )
        if checkpoint is not None:
            check_checkpoint(checkpoint)
            recall(checkpoint, result)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            result.interrupted = stopping() and result.steps < steps
        except KeyboardInterrupt:
            result.interrupted = True
        if metric is not None and trainer.state.best_global_step:
            value = trainer.state.best_metric
            result.best = (trainer.state.best_global_step, metric, float(value or 0.0))
    graph.eval()
    after = weight_hashes(graph)
    moved = [n for n, h in before.items() if after[n] != h]
    if moved:
        raise RuntimeError(f"training changed frozen weights: {', '.join(moved[:5])}")
    return result


def arguments(
    place: Path,
    graph: Program,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    every: int | None,
    metric: str | None,
    keep: bool,
) -> Any:
    """The Trainer's settings; an evaluation and a checkpoint fall on the same steps."""
    from transformers import TrainingArguments

    every = every or max(1, steps // 10)
    saving = keep or metric is not None
    return TrainingArguments(
        output_dir=str(place),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=max(1, steps * 6 // 100),
        weight_decay=0.0,
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // 20),
        save_strategy="steps" if saving else "no",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if metric is not None else "no",
        eval_steps=every,
        load_best_model_at_end=metric is not None,
        metric_for_best_model=f"eval_{metric}" if metric is not None else None,
        greater_is_better=metric != "loss",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=next(graph.parameters()).device.type == "cpu",
    )


def last_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        PeftcError: E305 where there is none.
    """
    if not (found := checkpoints(folder)):
        raise error(
            "E305",
            f"{folder} has no checkpoint to go on from",
            help=("start again: peftc train DIR --data train.jsonl",),
        )
    return found[-1]


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, the newest last: the Trainer writes its state last."""
    numbered = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    found = [p for p in numbered if read_json(p / "trainer_state.json")]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def recall(checkpoint: Path, result: Result) -> None:
    """What was logged before a checkpoint, into the result."""
    from transformers import TrainerState

    for entry in TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history:
        if "loss" in entry:
            result.losses.append((int(entry["step"]), float(entry["loss"])))
        elif found := {n[5:]: v for n, v in entry.items() if n.startswith("eval_")}:
            result.evaluations.append((int(entry["step"]), found))


class Meter:
    """A collator that counts the tokens of its batches, and the seconds since the first."""

    def __init__(self, collate: Collator) -> None:
        self.collate = collate
        self.tokens, self.start = 0, 0.0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch."""
        self.start = self.start or time.perf_counter()
        batch = self.collate(examples)
        mask = batch.get("attention_mask", batch.get("input_ids"))
        self.tokens += int((mask != 0).sum()) if mask is not None else 0
        return batch

    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / max(1e-9, time.perf_counter() - self.start) if self.start else 0.0
