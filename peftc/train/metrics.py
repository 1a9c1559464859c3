"""How good answers are, each by the library that the field compares with."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any

from peftc.ground.diagnostics import error

ENTITY = re.compile(r"O|[BIESLU]-.+")  # tags that mark where an entity begins
NEEDS = {
    "ForSequenceClassification": {"sklearn": "scikit-learn"},
    "ForTokenClassification": {"sklearn": "scikit-learn", "seqeval": "seqeval"},
    "ForQuestionAnswering": {"torchmetrics": "torchmetrics"},
}  # by loss: modules and their packages


def check_libraries(loss: str) -> None:
    """Refuse early where a library that measures a task is missing.

    Raises:
        PeftcError: E403.
    """
    for name, package in NEEDS.get(loss, {}).items():
        if importlib.util.find_spec(name) is None:
            help = ("pip install 'peftc[train]'",)
            raise error("E403", f"evaluation needs {package}", help=help)


def class_scores(found: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, and the mean of the classes' F1 (scikit-learn)."""
    from sklearn.metrics import accuracy_score, f1_score

    f1 = f1_score(labels, found, average="macro", zero_division=0)  # type: ignore[arg-type]
    return {"accuracy": float(accuracy_score(labels, found)), "f1": float(f1)}


def tag_scores(found: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """Of entities, F1, precision and recall (seqeval); of tags that mark none, as of classes."""
    flat = [t for row in found for t in row], [t for row in labels for t in row]
    every = class_scores(*flat)
    if not all(ENTITY.fullmatch(t) for tags in flat for t in tags):
        return every
    from seqeval.metrics import f1_score, precision_score, recall_score

    functions: dict[str, Callable[..., Any]] = {
        "f1": f1_score, "precision": precision_score, "recall": recall_score,
    }  # fmt: skip
    rows = [list(r) for r in labels], [list(r) for r in found]
    entities = {n: float(f(*rows, zero_division=0)) for n, f in functions.items()}
    return {**entities, "accuracy": every["accuracy"]}


def answer_scores(found: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1 and exact match as SQuAD defines them, 0 to 1 (torchmetrics); "" where there is none."""
    from torchmetrics.functional.text import squad

    texts = [{"prediction_text": t, "id": str(k)} for k, t in enumerate(found)]
    wanted = [{"answers": {"text": list(a) or [""]}, "id": str(k)} for k, a in enumerate(answers)]
    result = squad(texts, wanted)  # type: ignore[arg-type]
    return {n: float(result[n]) / 100 for n in ("f1", "exact_match")}
