"""A spec as it stands: every value a value, every `use` expanded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from peftc.ground.diagnostics import Span, error
from peftc.spec.insertion import Insertion
from peftc.spec.layers import Layers
from peftc.spec.problems import listed, near
from peftc.spec.schema import Expect, Export, Task, Unfreeze, Written
from peftc.spec.source import Source


class Spec:
    """A resolved spec: every value a value, every `use` expanded, defaults filled in."""

    def __init__(
        self,
        written: Written,
        insert: list[Insertion],
        unfreeze: list[Unfreeze],
        source: Source,
        places: list[int],
        variables: Mapping[str, Any],
        tasks: Mapping[str, Task],
    ) -> None:
        self.name: str = written.name
        self.about: str = written.about
        self.insert = tuple(insert)
        self.unfreeze = tuple(unfreeze)
        self.expect: Expect | None = written.expect
        self.export: Export | None = written.export
        self.vars = dict(variables)
        self.tasks = dict(tasks)
        self.source = source
        self._places = places  # for each insertion, the entry of the file it came from

    def span(self, *where: str | int) -> Span | None:
        """The place in the file of a value of the resolved spec, or of what it came from."""
        if len(where) > 1 and where[0] == "insert" and isinstance(where[1], int):
            where = ("insert", self._places[where[1]], *where[2:])
        return self.source.span(*where) if self.source.values else None

    def has(self, *where: str | int) -> bool:
        """Whether the file itself has a value there."""
        if len(where) > 1 and where[0] == "insert" and isinstance(where[1], int):
            where = ("insert", self._places[where[1]], *where[2:])
        return where in self.source.values

    def to_dict(self) -> dict[str, Any]:
        """The resolved spec as data that `load_spec` reads back to an equal one."""
        result: dict[str, Any] = {"peftc": 1, "name": self.name}
        if self.about:
            result["about"] = self.about
        if self.tasks:  # what their `set` made different stands at the insertions
            result["tasks"] = {n: {"head": plain(t)["head"]} for n, t in self.tasks.items()}
        result["insert"] = [plain(i) for i in self.insert]
        if self.unfreeze:
            result["unfreeze"] = [plain(u) for u in self.unfreeze]
        if self.expect is not None:
            result["expect"] = plain(self.expect)
        if self.export is not None:
            result["export"] = plain(self.export)
        return result

    def to_yaml(self) -> str:
        """The resolved spec as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def without(self, layers: object, insertion: str | None = None) -> Spec:
        """This spec with these layers left out, of one insertion or of all that stand in layers.

        `expect` goes: it counted the whole.

        Raises:
            PeftcError: E107 where `layers` is no choice of layers, E004 where there is no such
                insertion, E113 where what is named does not stand in layers.
        """
        try:
            gone = Layers(layers)
        except ValueError as cause:
            raise error("E107", f"without {layers}: {cause}") from cause
        known = {i.id: i for i in self.insert}
        if insertion is not None and insertion not in known:
            help = [f"did you mean `{n}`?" for n in near(insertion, known)]
            help.append(f"insertions: {listed(known)}")
            message = f"`{insertion}` is no insertion of {self.name}"
            raise error("E004", message, help=tuple(help))
        chosen = [i for i in self.insert if i.layered and insertion in (None, i.id)]
        if not chosen:
            raise error(
                "E113",
                f"nothing of {insertion or self.name} stands in layers, so none can be left out",
                help=("a prompt stands before all layers; a module glob names its own",),
            )
        made = copy.copy(self)
        made.expect = None
        made.insert = tuple(less(i, gone) if i in chosen else i for i in self.insert)
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def __repr__(self) -> str:
        return f"Spec({self.name!r}, {len(self.insert)} insertions)"


def less(insertion: Insertion, gone: Layers) -> Insertion:
    """An insertion without some layers; one that has none left is optional from then on."""
    without = insertion.without | gone if insertion.without else gone
    optional = insertion.optional or not insertion.layers.can_meet(without=without)
    return insertion.model_copy(update={"without": without, "optional": optional})


def plain(part: Any) -> dict[str, Any]:
    """A part of a spec as data; what is not set is left out."""
    return part.model_dump(mode="json", exclude_none=True)
