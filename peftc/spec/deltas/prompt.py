"""Options of soft prompts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftc.spec.deltas.base import DeltaOptions, Strict


class PromptEncoder(Strict):
    """The network that makes the prompt while training (P-tuning); folded away after it."""

    kind: Literal["mlp", "lstm"] = Field("mlp", description="MLP of three layers, or LSTM + MLP.")
    hidden: int = Field(gt=0, description="Width of its hidden layers.")


class Prompt(DeltaOptions):
    """Trainable rows in front of the input embeddings."""

    kind: ClassVar[str] = "prompt"
    sites: ClassVar[tuple[str, ...]] = ("embed.out",)
    composes: ClassVar[tuple[str, ...]] = ("prepend",)
    form: ClassVar[str | None] = None
    formula: ClassVar[str] = "[P; h]"
    by_task: ClassVar[tuple[str, ...] | None] = ("init", "encoder")

    tokens: int = Field(gt=0, description="How many rows stand in front.")
    init: Literal["uniform", "normal", "vocab"] = Field(
        "uniform", description="Uniform in [-0.5, 0.5], N(0, 0.02), or sampled embedding rows."
    )
    place: Literal["before", "after_first"] = Field(
        "before", description="Before the first token, or between it and the second."
    )
    encoder: PromptEncoder | None = Field(None, description="A network that makes the rows.")
