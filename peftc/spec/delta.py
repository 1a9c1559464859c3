"""What the options of every delta declare, as data: where it may stand and how it composes."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from peftc.spec.layers import ChoosesNothing
from peftc.spec.sizes import Sizes

Activation = Literal[
    "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu", "identity"
]


def not_blank(value: str, info: ValidationInfo) -> str:
    """A text that says something.

    Raises:
        ChoosesNothing: for blanks alone.
    """
    if not value.strip():
        raise ChoosesNothing(f"`{info.field_name}` is blank, so it names nothing")
    return value


Said = AfterValidator(not_blank)


class Strict(BaseModel):
    """A part of a spec: frozen, typed strictly, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class DeltaOptions(Strict):
    """Options of one delta. The class's facts are what `check`, the schema and the docs read."""

    kind: ClassVar[str]
    sites: ClassVar[tuple[str, ...]]  # globs over roles; "module" for a module of the model
    composes: ClassVar[tuple[str, ...]]  # the first is the default
    form: ClassVar[str | None]  # the default form, None where form has no meaning
    formula: ClassVar[str]  # what h becomes
    merges: ClassVar[bool] = False  # whether it can be folded into a frozen weight
    # The options that may differ from task to task; None where tasks cannot have their own.
    by_task: ClassVar[tuple[str, ...] | None] = None

    def at_layer(self, layer: int | None, count: int) -> Self:
        """These options at one layer of a stack of `count`: sizes by layer become numbers.

        Raises:
            ValueError: where a size is not said for this layer, or twice.
        """
        sizes = {n: v for n, v in self if isinstance(v, Sizes)}
        return self.model_copy(update={n: v.at(layer, count) for n, v in sizes.items()})
