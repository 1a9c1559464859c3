"""transformers' Trainer for a graph: checkpoints hold what is trained, never the base."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback

from peftc.artifact.folder import fill, read_tensors
from peftc.artifact.lock import TENSORS
from peftc.ground.files import FORMAT, check_intact, sha256
from peftc.ground.output.tree import as_others, flush
from peftc.ground.records import FileName, Record, Sha256, read_record, sealed
from peftc.rewrite.applied import trainable
from peftc.train.optimizer import HALF, MasterAdamW

Evaluation = Callable[[], dict[str, float]]
HASHES = "peftc.checkpoint.json"


class Hashes(Record):
    """The hash of every file of a checkpoint, written last."""

    format_version: Literal["1.0"]
    sha256: dict[FileName, Sha256]
    seal: Sha256


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint of which a file is missing or changed, before any of it is read.

    Raises:
        PeftcError: E303, E320.
    """
    if (folder / HASHES).is_file():  # checkpoints once had none
        hashes = read_record(folder / HASHES, Hashes, "checkpoint", "peftc train DIR --data FILE")
        check_intact(folder, hashes.sha256, HASHES)


class GraphTrainer(Trainer):
    """The Trainer, with the model's part of a checkpoint and of an evaluation replaced.

    Optimizer, schedule, random state and position in the data are the Trainer's own.
    """

    def __init__(self, *, evaluation: Evaluation | None, **options: Any) -> None:
        self.evaluation = evaluation
        super().__init__(**options)
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":
                self.remove_callback(callback)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # type: ignore[override]
        """Our metrics on the held-out rows, under the names that the Trainer looks for."""
        found = {f"eval_{n}": v for n, v in self.evaluation().items()} if self.evaluation else {}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics=found
        )
        return found

    def create_optimizer(self, *given: Any) -> Any:  # type: ignore[override]
        """AdamW, over float32 copies where what is trained is in half precision."""
        parameters = list(trainable(self.model).values())  # type: ignore[arg-type]
        if self.optimizer is None and any(p.dtype in HALF for p in parameters):
            self.optimizer = MasterAdamW(
                parameters,
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return super().create_optimizer(*given)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: p.detach().cpu().contiguous() for n, p in trainable(self.model).items()}  # type: ignore[arg-type]
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        hashes = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != HASHES}
        facts = sealed({"format_version": FORMAT, "sha256": hashes})
        (folder / HASHES).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._take(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._take(Path(str(self.state.best_model_checkpoint)))

    def _take(self, checkpoint: Path) -> None:
        fill(self.model, read_tensors(checkpoint / TENSORS), checkpoint)  # type: ignore[arg-type]


class Steps(TrainerCallback):
    """Calls back after every step, log and evaluation; ends the loop when it is asked to."""

    def __init__(
        self,
        on_step: Callable[[Any], None],
        on_log: Callable[[Any, dict[str, float]], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.step, self.log, self.stopping = on_step, on_log, stopping

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The end of an optimiser step: the only place where a checkpoint is whole."""
        self.step(state)
        if self.stopping() and state.global_step < state.max_steps:
            control.should_log = control.should_training_stop = True
            control.should_save = args.save_strategy != "no"

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The end of a checkpoint: on the disk, each file with the mode that the umask gives."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        modes = [stat.S_IMODE(p.stat().st_mode) for p in (folder / "trainer_state.json", folder)]
        as_others(folder, *modes)
        flush(folder)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """A loss, or the metrics of an evaluation."""
        self.log(state, dict(logs or {}))
