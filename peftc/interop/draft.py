"""What a reader makes of a checkpoint: pieces at places of a graph, not yet a spec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, fx

from peftc.capture.program import attribute
from peftc.dataflow.facts import Facts
from peftc.dataflow.select import module_input, module_paths, module_site
from peftc.dataflow.site import Attention, Site, Sites
from peftc.ground.diagnostics import error
from peftc.interop.checkpoint import Checkpoint

WRAPPED = ("modules_to_save", "original_module")  # inside PEFT's wrapper of a saved module


@dataclass(frozen=True)
class Found:
    """One piece of a checkpoint: its place, its options as a spec has them, and its tensors."""

    place: Site | Attention
    delta: Mapping[str, Any]
    compose: Any
    tensors: Mapping[str, Tensor]  # by the piece's own parameter names
    more: Mapping[str, Any] = field(default_factory=dict)  # of the insertion: `reads`, `form`


@dataclass
class Draft:
    """Everything of one checkpoint, each tensor in one place.

    `base`: new values of the model's own parameters. `keys`: the file's name of each of these.
    `unused`: tensors, or parts of them, that do not take part in any output. `same`: names in the
    file of base weights that were saved as they are.
    """

    name: str
    pieces: list[Found] = field(default_factory=list)
    base: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    unused: dict[str, Tensor] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)


class Reader(ABC):
    """Reads the checkpoints of some kinds; found by walking `peftc.interop`."""

    kinds: ClassVar[tuple[str, ...]]
    about: ClassVar[str]

    @abstractmethod
    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse what has no equivalent, from the configuration alone."""

    @abstractmethod
    def draft(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], places: Places) -> Draft:
        """The pieces of the checkpoint at the places of a graph."""


class Places:
    """The places of a graph by what checkpoints call them: paths of modules and parameters."""

    def __init__(self, sites: Sites, folder: Path) -> None:
        self.sites = sites
        self.program = sites.program
        self.folder = folder
        self.facts = Facts(sites.program)
        self.paths = set(module_paths(sites.program))
        self.parameters = dict(sites.program.named_parameters())

    def module(self, path: str, end: str = "output") -> Site:
        """The site of a module's output or input.

        Raises:
            PeftcError: E313 where the graph has no such module.
        """
        site = None
        if path in self.paths:
            site = (module_site if end == "output" else module_input)(self.facts, path)
        if site is None:
            raise self.absent(path)
        return site

    def absent(self, path: str) -> Exception:
        """E313: a module of the checkpoint that the graph does not have, and what may help."""
        name = self.program.signature.model_class
        tail = path.partition(".")[2]
        inside = [p for p in self.paths if p.endswith("." + path)]
        help = ["give the model that the checkpoint was made on, with --task where it has a head"]
        if tail in self.paths or inside:
            help.insert(0, f"{name} calls it {tail if tail in self.paths else inside[0]}")
        return error(
            "E313",
            f"{self.folder} changes `{path}`, which {name} does not have or does not use",
            help=tuple(help),
        )

    def parameter(self, name: str) -> str:
        """The graph's name of a parameter, shared ones by the module that reads them.

        Raises:
            PeftcError: E313 where the graph does not read it.
        """
        if name in self.parameters:
            return name
        path, _, last = name.rpartition(".")
        if path in self.paths and last == "weight":
            for node in self.readers(path):
                return str(node.target)
        raise self.absent(name)

    def readers(self, path: str) -> list[fx.Node]:
        """The weights of two axes that a module's nodes read."""
        return [
            a
            for n in self.facts.nodes
            if n.meta.get("module") == path
            for a in n.all_input_nodes
            if a.op == "get_attr" and attribute(self.program, str(a.target)).dim() == 2
        ]

    def take_base(self, draft: Draft, key: str, name: str, value: Tensor, *, frozen: bool) -> None:
        """Note a parameter of the model itself: changed, or saved as it is.

        What PEFT's wrapper of a saved module holds beside it (with `bias: all`) is not used.

        `frozen` says that the file holds it beside an update of it, so that an equal value is no
        change.

        Raises:
            PeftcError: E313 for another shape, E312 where the weight is shared and only one
                reader was to change.
        """
        if any(f".{wrapped}." in key for wrapped in WRAPPED):
            draft.unused[key] = value
            return
        own = self.parameter(name)
        here = self.parameters[own]
        if here.shape != value.shape:
            raise error(
                "E313",
                f"{key} is {list(value.shape)}, the model has {list(here.shape)}",
                help=(
                    "--labels where the number of labels differs",
                    "for new tokens: a model folder whose embeddings have their size",
                ),
            )
        as_it_is = here.dtype == value.dtype and here.detach().cpu().equal(value)
        if frozen and as_it_is:
            draft.same[key] = own
            return
        path = name.rpartition(".")[0]
        others = [
            u.meta.get("module", "")
            for n in self.program.graph.find_nodes(op="get_attr", target=own)
            for u in n.users
        ]
        if not frozen and any(o != path and not o.startswith(path + ".") for o in others):
            shared = next(o for o in others if o != path and not o.startswith(path + "."))
            raise error(
                "E312",
                f"{key} is a copy of a weight that {shared} shares in this model",
                help=("untie the weights (tie_word_embeddings: false) and save the model first",),
            )
        draft.base[own] = value
        draft.keys[own] = key


def key_of(place: Site | Attention) -> Any:
    """What a place is known by, whether it was found by its role or by its module."""
    if isinstance(place, Attention):
        return place.node
    rows = place.weight.rows if place.weight is not None else None
    return place.h, frozenset(place.readers), rows
