"""JSON lines -> examples: one row a line, checked, tokenised as the task needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from peftc.capture.program import Program
from peftc.ground.diagnostics import Diagnostic, PeftcError, error
from peftc.spec.problems import clipped
from peftc.train.lines import WrongRow, json_lines, parsed
from peftc.train.task import KEYS, Task, label_number

SHOWN = 10  # bad rows named at once


class Rows(Dataset):
    """Tokenised examples, each a dict of lists; under `task` the name of the task it is of.

    Of several tasks, batches are mixed.
    """

    def __init__(self, examples: list[dict[str, Any]]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]

    def of(self, task: str | None) -> Rows:
        """The rows of one task."""
        return Rows([e for e in self.examples if e.get("task") == task])


def read_rows(
    path: str | Path,
    graph: Program,
    tokenizer: Any,
    *,
    length: int = 128,
    task: str | None = None,
) -> Rows:
    """Read and tokenise a JSON lines file for the graph's task, or for one of several.

    Rows are read one at a time, and only their tokens are kept. Texts are cut at `length` tokens,
    or where the graph's positions end if that is earlier; the contexts of questions come in windows
    of that length.

    Raises:
        PeftcError: E081 for a file that cannot be read, E082 for wrong rows, all at once.
    """
    from peftc.train.encode import ENCODERS

    kind = Task.of(graph, task)
    path, encode = Path(path), ENCODERS[kind.kind]
    bad: list[Diagnostic] = []
    made: list[dict[str, Any]] = []
    count = wrong = 0
    for number, line in json_lines(path):
        try:
            row = checked(parsed(line), kind)
            found = encode(row, kind, tokenizer, length) if not wrong else []
        except WrongRow as cause:
            wrong += 1
            made.clear()
            if wrong <= SHOWN:
                bad.append(cause.at(path, number, line))
            continue
        for example in found if isinstance(found, list) else [found]:
            made.append({**example, "task": task, "row": count})
        count += 1
    if bad:
        more = wrong - SHOWN
        tail = [Diagnostic("E082", f"{more} more rows of {path} are wrong")] if more > 0 else []
        raise PeftcError(bad + tail)
    if not made:
        raise error("E082", f"{path} has no rows", help=(f"a row is {shape_of(kind)}",))
    return Rows(made)


def shape_of(task: Task) -> str:
    """A row of the task, as an example."""
    needed, _ = KEYS[task.kind]
    samples = {"label": next(iter(task.labels), ""), "tokens": ["..."], "tags": ["..."],
               "answers": {"text": ["..."], "answer_start": [0]}}  # fmt: skip
    return json.dumps({k: samples.get(k, "...") for k in needed})


def checked(row: Any, task: Task) -> dict[str, Any]:
    """A row, as its task needs it.

    Raises:
        WrongRow: where it is another.
    """
    needed, optional = KEYS[task.kind]
    if not isinstance(row, dict):
        raise WrongRow("a row is a mapping", f"a row is {shape_of(task)}")
    missing = [k for k in needed if k not in row]
    unknown = [k[:40] for k in row if k not in needed + optional]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(unknown[:SHOWN])}"] if unknown else []
        raise WrongRow("; ".join(parts), f"a row is {shape_of(task)}")
    for key in (*needed, *optional):
        if key in ("tokens", "tags"):
            if not isinstance(row[key], list):
                raise WrongRow(f"`{key}` is a list")
        elif key not in ("label", "answers") and not isinstance(row.get(key, ""), str):
            raise WrongRow(f"`{key}` is text")
    if "tokens" in row:
        if not all(isinstance(t, str) for t in row["tokens"]):
            raise WrongRow("`tokens` are texts")
        if len(row["tokens"]) != len(row["tags"]):
            raise WrongRow(f"{len(row['tokens'])} tokens, but {len(row['tags'])} tags")
    if "answers" in row and (text := wrong_answers(row["answers"], row["context"])):
        form = "answers: {text: [...], answer_start: [...]}, both empty where there is none"
        raise WrongRow(text, form)
    names = row["tags"] if "tags" in row else [row["label"]] if "label" in row else []
    for name in names:
        if label_number(name, task) is None:
            labels = f"labels: {', '.join(list(task.labels)[:20])}"
            raise WrongRow(f"`{clipped(str(name))}` is no label", labels)
    return row


def wrong_answers(answers: Any, context: str) -> str | None:
    """What is wrong with the answers of a question, in SQuAD's form."""
    if not isinstance(answers, dict) or not {"text", "answer_start"} <= set(answers):
        return "`answers` has `text` and `answer_start`"
    texts, starts = answers["text"], answers["answer_start"]
    lists = isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
    if not lists or not all(isinstance(t, str) and t for t in texts):
        return "`text` and `answer_start` are lists of one length, of texts and of numbers"
    for text, start in zip(texts, starts, strict=True):
        if type(start) is not int or start < 0 or context[start : start + len(text)] != text:
            return f"the context has no `{text[:40]}` at {start}"
    return None
