"""The pydantic models of a spec file: what may be written in it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from peftc.spec.compose import Number
from peftc.spec.delta import Said, Strict
from peftc.spec.heads import Head
from peftc.spec.insertion import SHARE, Insertion, LayersField, Share
from peftc.spec.layers import FORMS


class Use(Strict):
    """Another spec's insertions, its variables set anew."""

    id: str = Field(description="Names the insertions that come with it.")
    use: str = Field(description="A shipped name, or a file in this folder or below it.")
    set: dict[str, Number | str | bool] = Field(default_factory=dict, description="Its variables.")
    layers: LayersField | None = Field(None, description=FORMS)
    without: LayersField | None = Field(None, description=f"Layers that are left out: {FORMS}")
    stack: Literal["any", "encoder", "decoder"] | None = Field(None, description="Which stack.")
    optional: bool | None = Field(None, description="Whether matching nothing is fine.")
    share: Share | None = Field(None, description=SHARE)


class Unfreeze(Strict):
    """Parameters of the model itself that are trained as well."""

    role: Literal["norm", "bias", "head", "embed"] | None = Field(None, description="By role.")
    module: Annotated[str, Said] | None = Field(None, description="By a glob over module paths.")
    parameter: Annotated[str, Said] | None = Field(
        None, description="By a glob over names in the state dict."
    )
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
