"""Options of soft prompts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from peftc.methods.prefix.options import IDS, Reparam
from peftc.spec.delta import DeltaOptions, Said, Strict
from peftc.spec.one_of import Bare, OneOf

FREQUENT = 5000  # Lester et al. 2021, section 3.2


class PromptEncoder(Strict):
    """The network that makes the prompt while training (P-tuning); folded away after it."""

    kind: Literal["mlp", "lstm"] = Field("mlp", description="MLP of three layers, or LSTM + MLP.")
    hidden: int = Field(gt=0, description="Width of its hidden layers.")


def as_count(value: Any) -> Any:
    """The bare word `vocab` means the paper's number."""
    return FREQUENT if value == {} else value


class PromptInit(OneOf):
    """Where the rows start."""

    uniform: Bare | None = Field(None, description="Uniform in [-0.5, 0.5].")
    normal: Bare | None = Field(None, description="N(0, 0.02).")
    vocab: Annotated[int, Field(gt=0), BeforeValidator(as_count)] | None = Field(
        None,
        description="Embeddings drawn from the first N words of the vocabulary, which is in order "
        "of frequency for the usual tokenizers; special and unused tokens do not count.",
    )
    labels: Bare | None = Field(
        None,
        description="Embeddings of the class labels, averaged over their pieces, then as `vocab`.",
    )
    text: Annotated[str, Field(min_length=1), Said] | None = Field(
        None, description="Embeddings of these words, repeated or cut to `tokens` tokens."
    )
    ids: IDS | None = Field(None, description="As text, given as token ids.")


class Prompt(DeltaOptions):
    """Trainable rows in front of the input embeddings."""

    kind: ClassVar[str] = "prompt"
    sites: ClassVar[tuple[str, ...]] = ("embed.out",)
    composes: ClassVar[tuple[str, ...]] = ("prepend",)
    form: ClassVar[str | None] = None
    formula: ClassVar[str] = "[P; h]"
    by_task: ClassVar[tuple[str, ...] | None] = ("init", "encoder", "reparam")

    tokens: int = Field(gt=0, description="How many rows stand in front.")
    init: PromptInit = Field(
        default_factory=lambda: PromptInit.model_validate("uniform"),
        description="Where the rows start. Behind an encoder or `reparam`, embeddings are fitted "
        "by its last layer, exactly.",
    )
    place: Literal["before", "after_first"] = Field(
        "before", description="Before the first token, or between it and the second."
    )
    encoder: PromptEncoder | None = Field(None, description="A network that makes the rows.")
    reparam: Reparam | None = Field(
        None, description="An MLP of two layers that makes the rows while training."
    )

    ensemble: int | None = Field(
        None,
        gt=1,
        description="How many prompts are trained beside one another, each on its own loss, and "
        "answer together, in one batch of so many times the rows.",
    )
    vote: Literal["majority", "mean"] | None = Field(
        None,
        description="How an ensemble answers: by the majority of its members, the default, or by "
        "the mean of their outputs.",
    )

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if self.encoder is not None and self.reparam is not None:
            raise ValueError("`encoder` and `reparam` both make the rows: give one of them")
        return self

    @model_validator(mode="after")
    def _members(self) -> Self:
        if self.ensemble is None:
            if self.vote is not None:
                raise ValueError("`vote` is for an `ensemble` of prompts")
            return self
        if self.encoder is not None or self.reparam is not None:
            raise ValueError("the prompts of an `ensemble` share no network that makes them")
        if self.init.kind in ("text", "ids"):
            raise ValueError(f"an `ensemble` that starts equal stays equal: not `{self.init.kind}`")
        return self if self.vote is not None else self.model_copy(update={"vote": "majority"})
