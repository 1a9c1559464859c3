"""What a graph is trained for: its task, its labels, and the keys of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftc.capture.program import Program
from peftc.ground.diagnostics import error

# A task by the loss of the model: its rows' keys (the second tuple may be left out).
KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ForSequenceClassification": (("text", "label"), ("text_pair",)),
    "ForTokenClassification": (("tokens", "tags"), ()),
    "ForQuestionAnswering": (("question", "context", "answers"), ("id", "title")),
    "ForCausalLM": (("text",), ()),
    "ForMaskedLM": (("text",), ()),
    "sequence to sequence": (("source", "target"), ()),
}


@dataclass(frozen=True)
class Task:
    """What a graph is trained for, by its loss and its labels."""

    kind: str
    labels: dict[str, int]  # empty where the labels are tokens
    name: str | None = None  # of several
    longest: Mapping[str, int] = field(default_factory=dict)  # tokens that have a position

    def within(self, length: int, axis: str = "sequence") -> int:
        """`length`, or what the model has positions for where that is less."""
        return min(length, self.longest.get(axis, length))

    @classmethod
    def of(cls, graph: Program, name: str | None = None) -> Task:
        """The task that the graph's head is for, or the one of that name.

        Raises:
            PeftcError: E106 where the graph has no head that can be trained from rows, no such
                task, or several and none is named.
        """
        signature = graph.signature.for_task(name)
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
        return cls(kind, labels, name, signature.longest)


def label_number(name: Any, task: Task) -> int | None:
    """A label's number, from its name or the number itself; None for no label."""
    if isinstance(name, bool):
        return None
    if isinstance(name, int):
        return name if name in task.labels.values() else None
    return task.labels.get(str(name))
