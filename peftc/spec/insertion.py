"""An insertion: a delta at some places, composed with what is there, what is left out filled in."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from peftc.spec.compose import Compose, Gate
from peftc.spec.delta import DeltaOptions, Said, Strict
from peftc.spec.deltas import all_deltas
from peftc.spec.layers import FORMS, PATTERN, Layers
from peftc.spec.one_of import OneOf, one_of

PARTS = ("q", "k", "v", "kv", "heads", "out")
ATTENTION = tuple(f"{block}.{part}" for block in ("attn", "cross") for part in PARTS)
FEED_FORWARD = ("ffn.gate", "ffn.up", "ffn.act", "ffn.down", "ffn.out")
ROLES = ("embed.out", *ATTENTION, *FEED_FORWARD, "mixer.out", "block.out")
if TYPE_CHECKING:  # the delta is built from what the package holds
    Role = str
    Delta = OneOf
else:
    Role = Literal[ROLES]
    Delta = one_of("Delta", "What is computed and trained.", dict(all_deltas()))


class ModuleGlob(Strict):
    """Modules of the model by path, with * for any part of it."""

    module: Annotated[str, Said] = Field(min_length=1, description="A glob over module paths.")
    end: Literal["output", "input"] = Field(
        "output", description="The value that the module gives, or the one that it alone reads."
    )


def as_list(value: Any) -> Any:
    """One entry as a list of one."""
    return [value] if isinstance(value, str | dict) else value


def as_layers(value: Any) -> Layers:
    """The written form as `Layers`."""
    return value if isinstance(value, Layers) else Layers(value)


LayersField = Annotated[
    Any,
    BeforeValidator(as_layers),
    PlainSerializer(lambda v: v.written),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": rf"^({PATTERN}|\$\w+)$"},
                {"type": "integer", "minimum": 0},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            ],
            "description": FORMS,
        }
    ),
]
AtField = Annotated[list[Role | ModuleGlob], BeforeValidator(as_list), Field(min_length=1)]
Share = Literal["per_task", "all_tasks"]
SHARE = "per_task: each task has pieces of its own. all_tasks (as if left out): one for all."


class Variant(Strict):
    """What is different for one task."""

    delta: Delta | None = Field(None, description="Its delta: the same kind, of another size.")
    compose: Compose | None = Field(None, description="How its delta meets h.")


class Insertion(Strict):
    """One change: a delta at some places, composed with what is there."""

    id: str = Field(description="Names the parameters: peft.<id>.<site>.")
    at: AtField = Field(description="Where: one role or several, or {module: glob}.")
    layers: LayersField = Field(default_factory=lambda: Layers("all"), description=FORMS)
    without: LayersField | None = Field(
        None, description=f"Layers of these that are left out: {FORMS}"
    )
    stack: Literal["any", "encoder", "decoder"] = Field("any", description="Which stack.")
    form: Literal["sequential", "parallel"] | None = Field(
        None, description="sequential: the delta reads h; parallel: the input of what makes h."
    )
    reads: Literal["h", "x", "stream"] | None = Field(
        None, description="What the delta reads, where `form` does not say it."
    )
    delta: Delta = Field(description="What is computed and trained.")
    compose: Compose | None = Field(None, description="How it meets h.")
    optional: bool = Field(False, description="Whether matching nothing is fine.")
    share: Share | None = Field(None, description=SHARE)
    by_task: dict[str, Variant] | None = Field(
        None, description="With `share: per_task`: what is different for a task."
    )

    def for_task(self, name: str) -> Insertion:
        """The insertion as one task has it: its own delta and composition, for itself alone."""
        own = (self.by_task or {}).get(name) or Variant(delta=None, compose=None)
        said = self.model_dump(mode="json", exclude_none=True, exclude={"share", "by_task"})
        return Insertion.model_validate(said | own.model_dump(mode="json", exclude_none=True))

    def variants(self, tasks: Collection[str]) -> dict[str, Insertion]:
        """The insertion as each task has it; as it is, under "", where all tasks share it."""
        if self.share != "per_task" or not tasks:
            return {"": self}
        return {t: self.for_task(t) for t in tasks}

    @property
    def layered(self) -> bool:
        """Whether it stands in layers: an embedding, or a module named by its path, does not."""
        return any(isinstance(at, str) and at != "embed.out" for at in self.at)

    @property
    def composition(self) -> OneOf:
        """`compose`, which is always there in a resolved insertion."""
        return self.compose or Compose.model_validate(type(self.delta.options).composes[0])

    @property
    def merges(self) -> bool:
        """Whether it has a merged form: a linear function of the same input, with constants."""
        constant = self.gate is None or self.gate.reads == "none"
        return type(self.delta.options).merges and constant and self.reads in (None, "x")

    @property
    def gate(self) -> Any:
        """The options of its gate, if it has one."""
        options = self.composition.options
        return options if isinstance(options, Gate) else getattr(options, "gate", None)

    @property
    def formula(self) -> str:
        """What h becomes, with this insertion's own activation, scale and input."""
        options, compose = self.delta.options, self.composition
        text = options.formula.replace("(x)", f"({self.reads})" if self.reads else "(x)")
        text = text.replace("act(", f"{getattr(options, 'act', 'act')}(")
        gate = self.gate
        g = "" if gate is None else "g*" if gate.reads == "none" else f"g({gate.reads})*"
        if compose.kind == "gate":
            return f"(1-{g[:-1]})*h + {g}{text.removeprefix('h + ')}"
        if compose.kind == "attend":
            return text.replace("P_", f"{g}P_")
        if compose.kind == "add":
            scale = g + (f"{compose.options.scale:g}*" if compose.options.scale != 1 else "")
            text = text.replace("h + s*", "h + ").replace("h * l", "h + l")
            return text.replace("h + ", f"h + {scale}", 1)
        return text

    READS: ClassVar[dict[str | None, str | None]] = {"sequential": "h", "parallel": "x", None: None}

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        """Fill in what the delta's facts decide; what they forbid, `peftc.spec.legal` says."""
        facts: type[DeltaOptions] = type(self.delta.options)
        compose, delta = self.composition, self.delta
        implied = {"x": "parallel", None: facts.form}.get(self.reads, "sequential")
        form = self.form or implied
        reads = self.reads or self.READS[form]
        if facts.kind == "vector" and delta.options.init is None:
            start = "ones" if compose.kind == "multiply" else "zeros"
            delta = Delta.model_validate({"vector": {"init": start}})
        return self.model_copy(
            update={"compose": compose, "form": form, "reads": reads, "delta": delta}
        )
