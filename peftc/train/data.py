"""JSON lines -> batches: one row a line, checked, tokenised as the task needs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from peftc.capture.loss import IGNORED
from peftc.capture.program import Program
from peftc.diagnostics import Diagnostic, PeftcError, Span, error

# A task by the loss of the model: its rows' keys (the second tuple may be left out).
KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ForSequenceClassification": (("text", "label"), ("text_pair",)),
    "ForTokenClassification": (("tokens", "tags"), ()),
    "ForCausalLM": (("text",), ()),
    "ForMaskedLM": (("text",), ()),
    "sequence to sequence": (("source", "target"), ()),
}
SHOWN = 10  # bad rows named at once


class Rows(Dataset):
    """Tokenised examples, each a dict of lists."""

    def __init__(self, examples: list[dict[str, Any]]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]


@dataclass(frozen=True)
class Task:
    """What a graph is trained for, by its loss and its labels."""

    kind: str
    labels: dict[str, int]  # empty where the labels are tokens

    @classmethod
    def of(cls, graph: Program) -> Task:
        """The task that the graph's head is for.

        Raises:
            PeftcError: E106 where the graph has no head that can be trained from rows.
        """
        signature = graph.signature
        kind = signature.loss or ""
        if signature.input("decoder_input_ids") is not None:
            kind = "sequence to sequence"
        if kind not in KEYS:
            raise error(
                "E106",
                f"{signature.model_class} has no head that rows of text can train",
                help=("apply the spec with --task, for example --task sequence-classification",),
            )
        labels = {}
        if kind in ("ForSequenceClassification", "ForTokenClassification"):
            labels = {str(n): int(k) for k, n in signature.config.id2label.items()}
        return cls(kind, labels)


def read_rows(path: str | Path, graph: Program, tokenizer: Any, *, length: int = 128) -> Rows:
    """Read and tokenise a JSON lines file for the graph's task; texts are cut at `length` tokens.

    Raises:
        PeftcError: E081 for a file that cannot be read, E082 for wrong rows, all at once.
    """
    task = Task.of(graph)
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise error("E081", f"cannot read {path}: {cause}") from cause
    bad: list[Diagnostic] = []
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip() and (row := checked(line, number, path, task, bad)) is not None:
            rows.append(row)
    if bad:
        more = len(bad) - SHOWN
        tail = [Diagnostic("E082", f"{more} more rows of {path} are wrong")] if more > 0 else []
        raise PeftcError(bad[:SHOWN] + tail)
    if not rows:
        raise error("E082", f"{path} has no rows", help=(f"a row is {shape_of(task)}",))
    encode = ENCODERS[task.kind]
    return Rows([encode(row, task, tokenizer, length) for row in rows])


def shape_of(task: Task) -> str:
    """A row of the task, as an example."""
    needed, _ = KEYS[task.kind]
    samples = {"label": next(iter(task.labels), ""), "tokens": ["..."], "tags": ["..."]}
    return json.dumps({k: samples.get(k, "...") for k in needed})


def checked(
    line: str, number: int, path: Path, task: Task, bad: list[Diagnostic]
) -> dict[str, Any] | None:
    """One row, or None with a diagnostic added."""

    def wrong(text: str, *help: str) -> None:
        span = Span(str(path), number, 1, min(len(line), 60), line[:200])
        bad.append(Diagnostic("E082", text, span, help=help))

    try:
        row = json.loads(line)
    except json.JSONDecodeError as cause:
        wrong(f"not JSON: {cause.msg}")
        return None
    needed, optional = KEYS[task.kind]
    if not isinstance(row, dict):
        wrong("a row is a mapping", f"a row is {shape_of(task)}")
        return None
    missing = [k for k in needed if k not in row]
    unknown = [k for k in row if k not in needed + optional]
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(unknown)}"] if unknown else []
        wrong("; ".join(parts), f"a row is {shape_of(task)}")
        return None
    for key in (*needed, *optional):
        if key in ("tokens", "tags"):
            if not isinstance(row[key], list):
                wrong(f"`{key}` is a list")
                return None
        elif key != "label" and key in row and not isinstance(row[key], str):
            wrong(f"`{key}` is text")
            return None
    if "tokens" in row and len(row["tokens"]) != len(row["tags"]):
        wrong(f"{len(row['tokens'])} tokens, but {len(row['tags'])} tags")
        return None
    names = row["tags"] if "tags" in row else [row["label"]] if "label" in row else []
    for name in names:
        if label_number(name, task) is None:
            wrong(f"`{name}` is no label", f"labels: {', '.join(list(task.labels)[:20])}")
            return None
    return row


def label_number(name: Any, task: Task) -> int | None:
    """A label's number, from its name or the number itself; None for no label."""
    if isinstance(name, bool):
        return None
    if isinstance(name, int):
        return name if name in task.labels.values() else None
    return task.labels.get(str(name))


def encode_sequence(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A text, or a pair, and its label."""
    pair = [row["text_pair"]] if "text_pair" in row else []
    found = dict(tokenizer(row["text"], *pair, truncation=True, max_length=length))
    return {**found, "labels": label_number(row["label"], task)}


def encode_tokens(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """Words with tags: a word's first piece has its tag, the others do not count."""
    found = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=length)
    labels, last = [], None
    for word in found.word_ids():
        fresh = word is not None and word != last
        labels.append(label_number(row["tags"][word], task) if fresh else IGNORED)
        last = word
    return {**dict(found), "labels": labels}


def encode_text(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A text whose labels are its own tokens; the loss shifts them."""
    found = dict(tokenizer(row["text"], truncation=True, max_length=length))
    return {**found, "labels": list(found["input_ids"])}


def encode_pair(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A source, and the target's tokens as labels."""
    found = dict(tokenizer(row["source"], truncation=True, max_length=length))
    target = tokenizer(text_target=row["target"], truncation=True, max_length=length)
    return {**found, "labels": list(target["input_ids"])}


ENCODERS: dict[str, Callable[..., dict[str, Any]]] = {
    "ForSequenceClassification": encode_sequence,
    "ForTokenClassification": encode_tokens,
    "ForCausalLM": encode_text,
    "ForMaskedLM": encode_text,
    "sequence to sequence": encode_pair,
}


class Collator:
    """Examples of different lengths -> one batch, padded at the end; padding has no label."""

    def __init__(self, graph: Program, pad: int) -> None:
        self.names = {i.name for i in graph.signature.inputs}
        self.pad = pad

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack every input that the graph takes."""
        batch: dict[str, Tensor] = {}
        for name in examples[0]:
            if name not in self.names and name != "labels":
                continue
            values = [e[name] for e in examples]
            if not isinstance(values[0], list):
                batch[name] = torch.tensor(values)
                continue
            fill = {"input_ids": self.pad, "labels": IGNORED}.get(name, 0)
            longest = max(map(len, values))
            batch[name] = torch.tensor([v + [fill] * (longest - len(v)) for v in values])
        return batch
