"""A graph on held-out rows: the loss, and what each task is measured by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peftc.capture.loss import IGNORED, LABELS
from peftc.capture.program import Program
from peftc.capture.tasks import output_name
from peftc.train.collate import Collator
from peftc.train.data import Rows
from peftc.train.metrics import answer_scores, check_libraries, class_scores, tag_scores
from peftc.train.task import Task

LONGEST = 30  # tokens of an answer (Devlin et al. 2019, the released code)


def evaluate(graph: Program, rows: Rows, *, pad: int, batch: int = 64) -> dict[str, float]:
    """Mean loss over batches, and the metrics of the task, the leading one first.

    Of several tasks each has its own, `<task>_<metric>`; `score` is the mean of the leading ones.

    Raises:
        PeftcError: E403 where a library that computes them is missing.
    """
    if len(graph.signature.tasks) < 2:
        return evaluate_task(graph, rows, None, pad, batch)
    apart = {t: own for t in graph.signature.tasks if len(own := rows.of(t))}
    found = {t: evaluate_task(graph, own, t, pad, batch) for t, own in apart.items()}
    loss = sum(found[t]["loss"] * len(own) for t, own in apart.items()) / len(rows)
    score = sum(found[t][leading(found[t])] for t in found) / len(found)
    own = {f"{t}_{n}": v for t, metrics in found.items() for n, v in metrics.items()}
    return {"loss": loss, "score": score, **own}


def leading(metrics: dict[str, float]) -> str:
    """The metric that says which evaluation is best: the first that is not the loss."""
    return next((n for n in metrics if n != "loss"), "loss")


def evaluate_task(
    graph: Program, rows: Rows, name: str | None, pad: int, batch: int
) -> dict[str, float]:
    """The loss and the metrics on rows of one task."""
    task = Task.of(graph, name)
    check_libraries(task.kind)
    losses: list[float] = []
    answers = list(answered(graph, rows, name, pad, batch, losses))
    return {"loss": sum(losses) / len(losses), **scores(task, rows, answers)}


def answered(
    graph: Program, rows: Rows, name: str | None, pad: int, batch: int, losses: list[float]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """For each batch what was given, and what the graph answered, by the names of one task."""
    collate, signature = Collator(graph, pad), graph.signature
    device = next(graph.parameters()).device
    outputs = [o.name for o in signature.for_task(name).outputs]
    # What the graph calls the labels and the outputs of the task -> what the task does.
    own = {output_name(n, name or "", signature): n for n in (*LABELS, *outputs)}
    graph.eval()
    for start in range(0, len(rows), batch):
        given = collate([rows[k] for k in range(start, min(start + batch, len(rows)))])
        with torch.no_grad():
            output = graph(**{n: t.to(device) for n, t in given.items()})
        losses.append(output["loss"].item())
        given = {own.get(n, n): t for n, t in given.items()}
        yield given, {own[n]: t.cpu() for n, t in output.items() if own.get(n) in outputs}


def scores(
    task: Task, rows: Rows, answers: list[tuple[dict[str, Tensor], dict[str, Tensor]]]
) -> dict[str, float]:
    """The metrics of a task's answers."""
    if task.kind == "ForQuestionAnswering":
        return answer_scores(*spans(rows, [output for _, output in answers]))
    names = {k: n for n, k in task.labels.items()}
    right = counted = 0
    found: list[list[str]] = []
    wanted: list[list[str]] = []
    for given, output in answers:
        labels, best = given["labels"], output["logits"].argmax(-1)
        if task.kind == "ForCausalLM":
            labels, best = labels[:, 1:], best[:, :-1]
        counts = labels != IGNORED
        right += int(((best == labels) & counts).sum())
        counted += int(counts.sum())
        if names:
            for own, answer, real in zip(
                labels.reshape(len(labels), -1),
                best.reshape(len(labels), -1),
                counts.reshape(len(labels), -1),
                strict=True,
            ):
                found.append([names[int(k)] for k in answer[real]])
                wanted.append([names[int(k)] for k in own[real]])
    if task.kind == "ForTokenClassification":
        return tag_scores(found, wanted)
    if task.kind == "ForSequenceClassification":
        return class_scores([r[0] for r in found], [r[0] for r in wanted])
    return {"accuracy": right / max(counted, 1)}


def spans(rows: Rows, outputs: list[dict[str, Tensor]]) -> tuple[list[str], list[list[str]]]:
    """For each question the text between its best start and end, and the answers that are right.

    The best of all its windows; "", where some questions have no answer and the first token of
    every window scores higher.
    """
    texts: dict[int, tuple[float, str]] = {}
    none: dict[int, float] = {}
    right: dict[int, list[str]] = {}
    n = 0
    for output in outputs:
        for start, end in zip(output["start_logits"], output["end_logits"], strict=True):
            row: dict[str, Any] = rows[n]
            key, n = row["row"], n + 1
            score, text = best_span(start, end, row)
            texts[key] = max(texts.get(key, (score, text)), (score, text))
            nothing = float(start[0] + end[0])
            none[key] = min(none.get(key, nothing), nothing)
            right[key] = row["answers"]
    unanswerable = any(not a for a in right.values())
    chosen = [
        "" if unanswerable and none[k] > score else text for k, (score, text) in texts.items()
    ]
    return chosen, list(right.values())


def best_span(start: Tensor, end: Tensor, row: dict[str, Any]) -> tuple[float, str]:
    """The highest start + end of an answer in one window, and its text."""
    places = row["offsets"]
    size = len(places)
    inside = torch.tensor([p is not None for p in places])
    allowed = torch.ones(size, size, dtype=torch.bool).triu().tril(LONGEST - 1)
    allowed &= inside.unsqueeze(0) & inside.unsqueeze(1)
    total = (start[:size].unsqueeze(1) + end[:size]).masked_fill(~allowed, -torch.inf)
    first, last = divmod(int(total.argmax()), size)
    return float(total.max()), row["context"][places[first][0] : places[last][1]]
