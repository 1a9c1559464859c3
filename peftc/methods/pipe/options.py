"""Options of pipes: a delta written step by step."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from peftc.spec.delta import Activation, DeltaOptions, Strict
from peftc.spec.one_of import OneOf

Width = Annotated[int, Field(gt=0)]
Init = Literal["default", "normal", "zeros"]
INIT = "default: torch's own. normal: N(0, 1e-2) truncated. zeros: the step gives 0 at the start."


class Linear(Strict):
    """x W^T + b."""

    out: Width | Literal["same"] = Field(description="Features out; same: as many as h has.")
    rank: Width | None = Field(None, description="W as a product of two matrices of this rank.")
    init: Init = Field("default", description=INIT)
    bias: bool = Field(True, description="Whether there is a bias (zero at the start).")


class Conv1d(Strict):
    """A convolution along the sequence, which keeps its length."""

    kernel: Width = Field(description="Tokens seen at once.")
    out: Width | Literal["same"] | None = Field(
        None, description="Features out; as many as come in if left out; same: as h has."
    )
    groups: Width = Field(1, description="Groups of features that see one another.")
    pad: Literal["same", "causal"] = Field(
        "same", description="same: both sides (odd kernels). causal: earlier tokens only."
    )
    init: Init = Field("default", description=INIT)
    bias: bool = Field(True, description="Whether there is a bias (zero at the start).")

    @model_validator(mode="after")
    def _odd(self) -> Conv1d:
        if self.pad == "same" and self.kernel % 2 == 0:
            raise ValueError("`pad: same` needs an odd kernel; an even one is `pad: causal`")
        return self


class Scale(Strict):
    """A trained factor."""

    init: int | float = Field(1, description="Where it starts.")
    per: Literal["scalar", "channel"] = Field("scalar", description="One, or one a feature.")


class Step(OneOf):
    """One step of a pipe."""

    linear: Linear | None = Field(None, description="A linear map.")
    act: Activation | None = Field(None, description="A nonlinearity.")
    conv1d: Conv1d | None = Field(None, description="A convolution along the sequence.")
    norm: Literal["layer", "rms"] | None = Field(None, description="LayerNorm or RMSNorm.")
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="Its rate.")
    scale: int | float | Scale | None = Field(
        None, description="A fixed factor, or a trained one: {init, per}."
    )
    residual: Annotated[list[Step], Field(min_length=1)] | None = Field(
        None, description="x + these steps on x."
    )


class Pipe(DeltaOptions):
    """A delta of your own: steps, one after another."""

    kind: ClassVar[str] = "pipe"
    sites: ClassVar[tuple[str, ...]] = (
        "*.out", "*.q", "*.k", "*.v", "*.heads", "ffn.*", "module",
    )  # fmt: skip
    composes: ClassVar[tuple[str, ...]] = ("add", "gate")
    form: ClassVar[str | None] = "sequential"
    formula: ClassVar[str] = "h + pipe(x)"

    steps: Annotated[list[Step], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"steps": value}
        raise ValueError(
            "`pipe` is a list of steps: linear, act, conv1d, norm, dropout, scale, ..."
        )

    @model_serializer(mode="plain")
    def _as_list(self) -> list[Any]:
        return [s.model_dump(mode="json", exclude_none=True) for s in self.steps]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        steps = schema.get("properties", {}).get("steps", {"type": "array"})
        schema.clear()
        schema.update({**steps, "description": cls.__doc__})
        return schema
