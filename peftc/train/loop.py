"""The training loop: transformers' Trainer over the trainable tensors of a graph."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from peftc.api import trainable
from peftc.artifact import weight_hashes
from peftc.capture.loss import IGNORED
from peftc.capture.program import Program
from peftc.capture.trace import quiet
from peftc.diagnostics import error
from peftc.train.data import Collator, Rows

Watcher = Callable[[int, int, float | None], None]  # step, steps, loss


@dataclass
class Result:
    """What training did: the losses by step, and whether it was stopped by Ctrl-C."""

    steps: int
    losses: list[tuple[int, float]] = field(default_factory=list)
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
) -> Result:
    """Train what has gradients, in place; the frozen base is bit-identical afterwards.

    AdamW with a linear decay to zero after 6 % warm-up. Ctrl-C ends the loop early and keeps what
    was learned.

    Raises:
        PeftcError: E403 without accelerate, E107 where nothing is trainable.
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
    from transformers import Trainer, TrainerCallback, TrainingArguments

    result = Result(0)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            result.steps = state.global_step
            if watch is not None:
                watch(state.global_step, steps, result.losses[-1][1] if result.losses else None)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            if logs and "loss" in logs:
                result.losses.append((state.global_step, float(logs["loss"])))

    before = weight_hashes(graph)
    with tempfile.TemporaryDirectory(prefix="peftc-train-") as folder, quiet():
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=lr,
            lr_scheduler_type="linear",
            warmup_steps=max(1, steps * 6 // 100),
            weight_decay=0.0,
            seed=seed,
            data_seed=seed,
            logging_steps=max(1, steps // 20),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=next(graph.parameters()).device.type == "cpu",
        )
        trainer = Trainer(
            model=graph,
            args=arguments,
            train_dataset=rows,
            data_collator=Collator(graph, pad),
            callbacks=[Watch()],
        )
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":
                trainer.remove_callback(callback)
        try:
            trainer.train()
        except KeyboardInterrupt:
            result.interrupted = True
    graph.eval()
    after = weight_hashes(graph)
    moved = [n for n, h in before.items() if after[n] != h]
    if moved:
        raise RuntimeError(f"training changed frozen weights: {', '.join(moved[:5])}")
    return result


def evaluate(graph: Program, rows: Rows, *, pad: int, batch: int = 64) -> dict[str, float]:
    """Mean loss over batches, and accuracy over the labels that count."""
    collate = Collator(graph, pad)
    device = next(graph.parameters()).device
    right = counted = 0
    losses: list[float] = []
    graph.eval()
    shift = graph.signature.loss == "ForCausalLM" and not graph.signature.input("decoder_input_ids")
    for start in range(0, len(rows), batch):
        given = collate([rows[k] for k in range(start, min(start + batch, len(rows)))])
        given = {n: t.to(device) for n, t in given.items()}
        with torch.no_grad():
            output = graph(**given)
        losses.append(output["loss"].item())
        labels, found = given["labels"], output["logits"].argmax(-1)
        if shift:
            labels, found = labels[:, 1:], found[:, :-1]
        counts = labels != IGNORED
        right += int(((found == labels) & counts).sum())
        counted += int(counts.sum())
    return {"loss": sum(losses) / len(losses), "accuracy": right / max(counted, 1)}
