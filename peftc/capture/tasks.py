"""Calls of a graph with several heads: one task's answer, or every task's, and their losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers.utils.generic import ModelOutput

from peftc.capture.loss import IGNORED, LABELS, loss_of
from peftc.ground.diagnostics import error

TASK_IDS = "task_ids"  # the input that says which task each row belongs to


def answer(program: Any, inputs: dict[str, Any]) -> Any:
    """Answer as one task's model, or with the outputs of all.

    `task="ner"` takes the rows as rows of that task, and gives its output class, with a loss for
    `labels`. Without it every task answers every row, `logits_<task>`; the pieces are those of
    `task_ids`, and labels are `labels_<task>` for all rows, of which a task's own count. Their
    loss is sum over tasks of n_t / n loss_t, n_t being a task's rows of n.

    Raises:
        PeftcError: E106 for an unknown task, or labels that are no task's.
    """
    signature = program.signature
    task = inputs.pop("task", None)
    if task is None and len(signature.tasks) == 1:
        task = next(iter(signature.tasks))
    if task is not None:
        return answer_one(program, task, inputs)
    labels = {n: labels_of(inputs, n) for n in signature.tasks}
    if any(inputs.pop(n, None) is not None for n in LABELS):
        signature.for_task()  # refuses: there are several
    rows = inputs.get(TASK_IDS)
    if signature.input(TASK_IDS) is None:
        inputs.pop(TASK_IDS, None)
    flat = program.flat(*signature.bind(inputs))
    found = dict(zip((o.name for o in signature.outputs), flat, strict=True))
    output = ModelOutput(found)
    if any(labels.values()):
        if rows is None:
            raise error("E106", "labels of several tasks need `task_ids`: which row is whose")
        output["loss"] = mixed_loss(program, flat, labels, rows)
        output.move_to_end("loss", last=False)
    return output


def answer_one(program: Any, task: str, inputs: dict[str, Any]) -> Any:
    """The answer of one task to rows of its own."""
    signature = program.signature
    one = signature.for_task(task)
    inputs.pop(TASK_IDS, None)
    labels = {n: v for n in LABELS if (v := inputs.pop(n, None)) is not None}
    if signature.input(TASK_IDS) is not None:
        like = next(v for v in inputs.values() if isinstance(v, Tensor))
        index = list(signature.tasks).index(task)
        rows = torch.full((like.shape[0],), index, dtype=torch.long, device=like.device)
        inputs[TASK_IDS] = rows
    output = unpacked(program, task, program.flat(*signature.bind(inputs)))
    if labels:
        output["loss"] = loss_of(output, labels, one)
        output.move_to_end("loss", last=False)
    return output


def unpacked(program: Any, task: str, flat: Any) -> Any:
    """A task's outputs, of all that the graph gives, as its output class."""
    signature = program.signature
    one = signature.for_task(task)
    found = dict(zip((o.name for o in signature.outputs), flat, strict=True))
    mine = [found[output_name(o.name, task, signature)] for o in one.outputs]
    return pytree.tree_unflatten(mine, one.structure)


def output_name(name: str, task: str, signature: Any) -> str:
    """What a graph calls an output: as it is, or with the name of its task, one of several."""
    return name if len(signature.tasks) < 2 else f"{name}_{task}"


def labels_of(inputs: dict[str, Any], task: str) -> dict[str, Tensor]:
    """The labels of one task, taken out of the inputs."""
    taken = {n: inputs.pop(f"{n}_{task}", None) for n in LABELS}
    return {n: v for n, v in taken.items() if v is not None}


def mixed_loss(
    program: Any, flat: Any, labels: dict[str, dict[str, Tensor]], rows: Tensor
) -> Tensor:
    """The sum over tasks of n_t / n loss_t, each on the task's own rows."""
    total = flat[0].new_zeros(())
    for index, (task, own) in enumerate(labels.items()):
        mine = (rows == index).nonzero().squeeze(1)
        if not own or not len(mine):
            continue
        own = {n: v[mine] for n, v in own.items()}
        if "labels" in own and not (own["labels"] != IGNORED).any():
            continue
        output = unpacked(program, task, [t[mine] for t in flat])
        one = program.signature.for_task(task)
        loss = loss_of(output, own, one)
        total = total + loss * (len(mine) / len(rows))
    return total
