"""Options of prefixes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftc.spec.delta import Activation, DeltaOptions, Said, Strict
from peftc.spec.one_of import Bare, OneOf


class Reparam(Strict):
    """The MLP that makes keys and values of all sites while training; folded away after it."""

    hidden: int = Field(gt=0, description="Width of the hidden layer.")
    act: Activation = Field("tanh", description="Nonlinearity of the hidden layer.")


IDS = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class PrefixInit(OneOf):
    """Where the keys and values start."""

    normal: Bare | None = Field(None, description="N(0, 0.02).")
    zeros: Bare | None = Field(None, description="Zeros.")
    text: Annotated[str, Field(min_length=1), Said] | None = Field(
        None,
        description="The model's own keys and values for these words, repeated or cut to `tokens` "
        "tokens, at positions 0 and on.",
    )
    ids: IDS | None = Field(None, description="As text, given as token ids.")


class Prefix(DeltaOptions):
    """Trainable keys and values in front of attention."""

    kind: ClassVar[str] = "prefix"
    sites: ClassVar[tuple[str, ...]] = ("attn.kv", "cross.kv")
    composes: ClassVar[tuple[str, ...]] = ("attend",)
    form: ClassVar[str | None] = None
    formula: ClassVar[str] = "attn(q, [P_k;k], [P_v;v])"
    by_task: ClassVar[tuple[str, ...] | None] = ("tokens", "reparam", "init")

    tokens: int = Field(gt=0, description="How many keys and values stand in front.")
    reparam: Reparam | None = Field(None, description="An MLP that makes them while training.")
    positions: Literal["shift", "keep"] = Field(
        "shift",
        description="shift: real tokens start at position `tokens`, as after a cache. keep: at 0.",
    )
    mask: Literal["open", "cached"] = Field(
        "open",
        description="open: every query sees the prefix, without a bias. cached: the model's mask "
        "and relative biases take it for `tokens` earlier tokens, so that a window can hide it.",
    )
    before: int | None = Field(
        None,
        ge=0,
        description="An infix: the rows stand in front of the first token with this id instead of "
        "all tokens. Queries see them, and positions count on behind them, from there.",
    )
    init: PrefixInit = Field(
        default_factory=lambda: PrefixInit.model_validate("normal"),
        description="Where keys and values start. With `reparam` they start as the MLP gives them; "
        "words are fitted by its last layer, exactly.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the prefix.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.before is not None and self.mask == "cached":
            raise ValueError("a cache holds earlier tokens only: an infix has `mask: open`")
        return self
