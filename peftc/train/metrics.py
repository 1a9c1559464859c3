"""How good predictions are, by kind of task: accuracy, F1 of tags, exact match of answers."""

from __future__ import annotations

import importlib.util
import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftc.capture.loss import IGNORED
from peftc.diagnostics import error

LONGEST = 30  # tokens of an answer
TAG = re.compile(r"O|[BIESLU]-.+")


class Judge(ABC):
    """Collects predictions batch by batch. The first number of `result` is the one that counts."""

    @abstractmethod
    def add(self, output: Any, given: dict[str, Tensor], examples: Sequence[dict]) -> None:
        """Take in one batch."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """The numbers so far."""


class Tokens(Judge):
    """Accuracy over all labels that count; `shift`: those of the next token."""

    def __init__(self, shift: bool = False) -> None:
        self.shift, self.right, self.counted = shift, 0, 0

    def add(self, output: Any, given: dict[str, Tensor], examples: Sequence[dict]) -> None:
        """Count the labels that are right."""
        labels, found = given["labels"], output["logits"].argmax(-1)
        if self.shift:
            labels, found = labels[:, 1:], found[:, :-1]
        counts = labels != IGNORED
        self.right += int(((found == labels) & counts).sum())
        self.counted += int(counts.sum())

    def result(self) -> dict[str, float]:
        """{"accuracy"}."""
        return {"accuracy": self.right / max(self.counted, 1)}


class Classes(Judge):
    """Accuracy, and the mean over labels of their F1."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def add(self, output: Any, given: dict[str, Tensor], examples: Sequence[dict]) -> None:
        """Take the labels and what was found."""
        found = output["logits"].argmax(-1).tolist()
        self.pairs += zip(given["labels"].tolist(), found, strict=True)

    def result(self) -> dict[str, float]:
        """{"accuracy", "macro_f1"}; labels that neither occur nor are found do not count."""
        right = Counter(a for a, b in self.pairs if a == b)
        wanted, found = Counter(a for a, _ in self.pairs), Counter(b for _, b in self.pairs)
        each = [2 * right[k] / (wanted[k] + found[k]) for k in wanted.keys() | found.keys()]
        count = max(len(self.pairs), 1)
        return {
            "accuracy": sum(right.values()) / count,
            "macro_f1": sum(each) / max(len(each), 1),
        }


class Tags(Tokens):
    """F1 of whole spans, as seqeval counts them, and accuracy over tokens."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        if importlib.util.find_spec("seqeval") is None:
            raise error(
                "E403",
                "the F1 of tagged spans needs seqeval",
                help=("pip install 'peftc[train]'",),
            )
        self.names, self.wanted, self.found = names, [], []

    def add(self, output: Any, given: dict[str, Tensor], examples: Sequence[dict]) -> None:
        """Take the tags of every row, as names."""
        super().add(output, given, examples)
        for labels, found in zip(given["labels"], output["logits"].argmax(-1), strict=True):
            counts = labels != IGNORED
            self.wanted.append([self.names[k] for k in labels[counts].tolist()])
            self.found.append([self.names[k] for k in found[counts].tolist()])

    def result(self) -> dict[str, float]:
        """{"f1", "precision", "recall", "accuracy"}."""
        from seqeval import metrics

        def score(name: str) -> float:
            function = getattr(metrics, f"{name}_score")
            return float(function(self.wanted, self.found, zero_division=0))

        return {n: score(n) for n in ("f1", "precision", "recall")} | super().result()


class Answers(Judge):
    """Exact match and F1 over words of the best span, as SQuAD counts them."""

    def __init__(self) -> None:
        self.rows: list[tuple[list[str], str, float]] = []  # answers, found, margin over none

    def add(self, output: Any, given: dict[str, Tensor], examples: Sequence[dict]) -> None:
        """Take the best span of every row."""
        scores = zip(output["start_logits"], output["end_logits"], examples, strict=True)
        for start, end, example in scores:
            text, best = best_span(start.float().cpu(), end.float().cpu(), example)
            self.rows.append((example["answers"], text, best - float(start[0] + end[0])))

    def result(self) -> dict[str, float]:
        """{"f1", "exact_match"}; a row without an answer wants none found."""
        some_have_none = not all(answers for answers, *_ in self.rows)
        exact = f1 = 0.0
        for answers, text, margin in self.rows:
            found = "" if some_have_none and margin < 0 else text
            exact += max((words(found) == words(a) for a in answers), default=not found)
            f1 += max((overlap(found, a) for a in answers), default=float(not found))
        count = max(len(self.rows), 1)
        return {"f1": f1 / count, "exact_match": exact / count}


def best_span(start: Tensor, end: Tensor, example: dict) -> tuple[str, float]:
    """The text with the highest start + end that lies in the context, and its score."""
    offsets = example["offsets"]
    inside = torch.tensor([o is not None for o in offsets])
    count = len(offsets)
    allowed = (inside[:, None] & inside[None, :]).triu().tril(LONGEST - 1)
    scores = start[:count, None] + end[None, :count]
    scores = scores.masked_fill(~allowed, float("-inf"))
    best = int(scores.argmax())
    first, last = offsets[best // count], offsets[best % count]
    if first is None or last is None:
        return "", float("-inf")
    return example["context"][first[0] : last[1]], float(scores.max())


def words(text: str) -> list[str]:
    """The words of an answer: lower case, no punctuation, no articles."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return [w for w in plain.split() if w not in ("a", "an", "the")]


def overlap(found: str, wanted: str) -> float:
    """F1 of the words that two answers share."""
    a, b = Counter(words(found)), Counter(words(wanted))
    if not a or not b:
        return float(a == b)
    return 2 * (a & b).total() / (a.total() + b.total())


def judge(signature: Any) -> Judge:
    """The judge of a task, by its loss and its labels."""
    if signature.loss == "ForQuestionAnswering":
        return Answers()
    if signature.loss == "ForSequenceClassification":
        return Classes()
    if signature.loss == "ForTokenClassification":
        labels = signature.config.id2label
        names = [str(labels[k]) for k in sorted(labels)]
        tagged = any(n.startswith("B-") for n in names) and all(map(TAG.fullmatch, names))
        return Tags(names) if tagged else Tokens()
    decodes = signature.input("decoder_input_ids") is not None
    return Tokens(shift=signature.loss == "ForCausalLM" and not decodes)
