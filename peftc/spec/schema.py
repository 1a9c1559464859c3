"""The pydantic models of a spec: what may be written, and what is left out filled in."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from peftc.spec.deltas import all_deltas
from peftc.spec.deltas.base import DeltaOptions, Strict
from peftc.spec.heads import Head
from peftc.spec.layers import FORMS, PATTERN, Layers
from peftc.spec.one_of import OneOf, one_of

PARTS = ("q", "k", "v", "kv", "heads", "out")
ATTENTION = tuple(f"{block}.{part}" for block in ("attn", "cross") for part in PARTS)
FEED_FORWARD = ("ffn.gate", "ffn.up", "ffn.act", "ffn.down", "ffn.out")
ROLES = ("embed.out", *ATTENTION, *FEED_FORWARD, "mixer.out", "block.out")
if TYPE_CHECKING:
    Role = str
else:
    Role = Literal[ROLES]
Number = int | float


class Gate(Strict):
    """(1 - g) h + g delta, with a trained g; under `add`, h + g * scale * delta."""

    init: Number = Field(0.5, description="Where g starts.")
    per: Literal["scalar", "channel"] = Field("scalar", description="One g, or one a feature.")
    reads: Literal["none", "h", "x", "stream"] = Field(
        "none",
        description="none: g is a number. h, x, stream, as an insertion reads: each token has its "
        "own g = sigmoid(w . x + b).",
    )


class PrefixGate(Strict):
    """Each query sees g P_k and g P_v, g = sigmoid(w . x + b) of the input of its projection."""

    init: float = Field(0.5, gt=0, lt=1, description="Where g starts.")
    reads: Literal["x"] = Field("x", description="x: what the projection of the queries reads.")


class Add(Strict):
    """h + scale * delta, or h + g * scale * delta."""

    scale: Number = Field(1, description="What the delta is multiplied with.")
    gate: Gate | None = Field(None, description="A trained g.")


class Multiply(Strict):
    """h * delta."""


class Attend(Strict):
    """Keys and values that the softmax sees beside the model's own."""

    gate: PrefixGate | None = Field(None, description="How much of them each query sees.")


class Prepend(Strict):
    """Rows in front of the sequence."""

    trim: bool = Field(True, description="Cut these rows from the outputs again.")
    padding: Literal["ids", "none"] = Field(
        "ids",
        description="What the model finds in the ids besides embeddings, such as the last token "
        "that is no padding: in the real ids; or none of them is padding, as with inputs_embeds.",
    )


COMPOSES: dict[str, type[Strict]] = {
    "add": Add,
    "gate": Gate,
    "multiply": Multiply,
    "attend": Attend,
    "prepend": Prepend,
}
if TYPE_CHECKING:  # both are built from what the packages hold
    Delta = Compose = OneOf
else:
    Delta = one_of("Delta", "What is computed and trained.", dict(all_deltas()))
    Compose = one_of("Compose", "How the delta meets h.", COMPOSES)


class ModuleGlob(Strict):
    """Modules of the model by path, with * for any part of it."""

    module: str = Field(min_length=1, description="A glob over module paths.")
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
        """Whether it has a merged form: no gate, no nonlinearity."""
        return type(self.delta.options).merges and self.gate is None

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


class Use(Strict):
    """Another spec's insertions, its variables set anew."""

    id: str = Field(description="Names the insertions that come with it.")
    use: str = Field(description="A shipped name, or a path from this file.")
    set: dict[str, Number | str | bool] = Field(default_factory=dict, description="Its variables.")
    layers: LayersField | None = Field(None, description=FORMS)
    without: LayersField | None = Field(None, description=f"Layers that are left out: {FORMS}")
    stack: Literal["any", "encoder", "decoder"] | None = Field(None, description="Which stack.")
    optional: bool | None = Field(None, description="Whether matching nothing is fine.")
    share: Share | None = Field(None, description=SHARE)


class Unfreeze(Strict):
    """Parameters of the model itself that are trained as well."""

    role: Literal["norm", "bias", "head", "embed"] | None = Field(None, description="By role.")
    module: str | None = Field(None, description="By a glob over module paths.")
    parameter: str | None = Field(None, description="By a glob over names in the state dict.")
    optional: bool = Field(False, description="Whether matching nothing is fine.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(w is not None for w in (self.role, self.module, self.parameter)) != 1:
            raise ValueError("exactly one of: role, module, parameter")
        return self


class Expect(Strict):
    """Counts that turn a change of the model into an error."""

    sites: int | str | None = Field(None, description="In all, or `2 per layer`.")

    @model_validator(mode="after")
    def _form(self) -> Self:
        if isinstance(self.sites, str) and not re.fullmatch(r"\d{1,6} per layer", self.sites):
            raise ValueError("`sites` is a number or `N per layer`")
        return self


class Export(Strict):
    """What `peftc export` does unless the command line says otherwise."""

    fold: Literal["auto", "none"] | list[str] = Field(
        "auto",
        description="auto: merge what can be merged. none. Or the ids of what is to be merged; "
        "`reparam` stands for prefix MLPs and prompt encoders, which always go.",
    )


class Task(Strict):
    """One task of several that a graph serves."""

    head: Head = Field(description="What is computed from the model's last states.")
    set: dict[str, Number | str | bool] = Field(
        default_factory=dict, description="Variables, for its own pieces (`share: per_task`)."
    )


class Written(Strict):
    """A spec as it is written."""

    peftc: Literal[1] = Field(description="The version of the language.")
    name: str = Field(min_length=1, description="What reports and model cards call it.")
    about: str = Field("", description="One line on what it does, and the paper.")
    vars: dict[str, Number | str | bool] = Field(
        default_factory=dict, description="Values that --set and `use` can change."
    )
    insert: list[Insertion | Use] = Field(
        default_factory=list, description="The changes, in order."
    )
    tasks: dict[str, Task] = Field(
        default_factory=dict, description="The tasks of one graph by name, a head for each."
    )
    unfreeze: list[Unfreeze] = Field(default_factory=list, description="What else is trained.")
    expect: Expect | None = Field(None, description="Counts that must hold.")
    export: Export | None = Field(None, description="How the graph is exported.")
