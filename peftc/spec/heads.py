"""The heads that a task can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from peftc.spec.delta import Strict
from peftc.spec.one_of import OneOf, one_of


def distinct(labels: Any) -> Any:
    """Labels, each name once."""
    if isinstance(labels, list) and len(set(labels)) != len(labels):
        twice = next(n for n in labels if labels.count(n) > 1)
        raise ValueError(f"the label `{twice}` is given twice")
    return labels


Labels = Annotated[
    Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)],
    AfterValidator(distinct),
]
LABELS = "How many labels, or their names."
DROPOUT = "Dropout in front of the linear layer."


class HeadOptions(Strict):
    """What all heads have: a linear layer on the model's last states, and a loss."""

    loss: ClassVar[str]  # transformers' name for it
    formula: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names, in the order of the scores."""
        labels: Any = getattr(self, "labels", ())
        return tuple(f"LABEL_{k}" for k in range(labels)) if type(labels) is int else tuple(labels)


class SequenceClassification(HeadOptions):
    """One label for a whole text."""

    loss: ClassVar[str] = "ForSequenceClassification"
    formula: ClassVar[str] = "linear(pooled)"

    labels: Labels = Field(description=LABELS)
    dropout: float = Field(0.1, ge=0, lt=1, description=DROPOUT)
    pool: Literal["auto", "pooler", "first", "last", "mean"] = Field(
        "auto",
        description="What of a text it reads: the model's own pooler, the first token, the last "
        "real one, or the mean of the real ones. auto: the pooler where the model has one, else "
        "the last token where tokens see only earlier ones, else the first.",
    )


class TokenClassification(HeadOptions):
    """One label for every token."""

    loss: ClassVar[str] = "ForTokenClassification"
    formula: ClassVar[str] = "linear(h)"

    labels: Labels = Field(description=LABELS)
    dropout: float = Field(0.1, ge=0, lt=1, description=DROPOUT)


class QuestionAnswering(HeadOptions):
    """The first and the last token of an answer that stands in the text."""

    loss: ClassVar[str] = "ForQuestionAnswering"
    formula: ClassVar[str] = "start, end = linear(h)"

    dropout: float = Field(0.0, ge=0, lt=1, description=DROPOUT)


HEADS: dict[str, type[HeadOptions]] = {
    "sequence_classification": SequenceClassification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
}
if TYPE_CHECKING:
    Head = OneOf
else:
    Head = one_of("Head", "A task's own output layer.", HEADS)
