"""What a pass is, and the few graph edits that all passes are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, fx, nn

from peftc.capture.piece_name import piece_name
from peftc.capture.program import Program, attribute
from peftc.capture.stored import own_copy
from peftc.capture.values import set_value
from peftc.ground.diagnostics import PeftcError, error

Module = TypeVar("Module", bound=nn.Module)
Change = Callable[[Tensor], Tensor]  # of a weight; it may work in place on what it is given
END = torch.iinfo(torch.int64).max  # "to the end" of a slice
DEFERRED = "peftc.deferred"  # in a Program's meta: changes of weights that wait, by weight


class Keeps(Enum):
    """What a pass promises; the pipeline checks it."""

    OUTPUTS = "outputs"  # the same numbers, so the same signature
    NOTHING = "nothing"  # new inputs or outputs, which the signature then has
    SIGNATURE = "signature"  # the same inputs and outputs, by name, dtype and shape


class Pass(ABC):
    """One kind of change to a Program, made in place on the pipeline's own copy.

    What changed is computed by the pipeline from the graph's text before and after.
    """

    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    @property
    def name(self) -> str:
        """The name in reports: the class's, and what it works on."""
        return type(self).__name__

    @abstractmethod
    def run(self, program: Program) -> None:
        """Rewrite `program.graph` in place."""


def refuse(reason: str, *, code: str = "E120", help: tuple[str, ...] = ()) -> PeftcError:
    """What a pass raises where this model's graph has no place for its rewrite; `reason` says why.

    Any other exception out of a pass is a fault of this package, and is told as one.
    """
    return error(code, reason, help=help)


def add_module(program: Program, name: str, module: nn.Module) -> None:
    """Put `module` at a dotted path, making the containers on the way."""
    parent: nn.Module = program
    *path, last = name.split(".")
    for part in path:
        if part not in parent._modules:
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    module.train(program.training)
    parent.add_module(last, module)


def set_parameter(program: Program, name: str, value: Tensor, *, trainable: bool = False) -> None:
    """Replace the parameter at a dotted path by one of its own storage."""
    parent = program.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Parameter(value, requires_grad=trainable))


def change(program: Program, name: str, by: Change) -> None:
    """%weight  ->  by(%weight), on storage of its own; `by` is given a copy.

    In a program that defers, the change only waits in its meta, so that one who writes the
    weights to disk can make them one at a time.
    """
    waiting = program.meta.get(DEFERRED)
    if waiting is not None:
        waiting.setdefault(name, []).append(by)
        return
    with torch.no_grad():
        set_parameter(program, name, by(own_copy(program, name)))


def settled(program: Program, name: str) -> Tensor:
    """The weight called `name` after the changes that wait for it, in memory of its own."""
    value = own_copy(program, name)
    with torch.no_grad():
        for by in program.meta.get(DEFERRED, {}).get(name, ()):
            value = by(value)
    return value


def call_module(program: Program, name: str, args: tuple[Any, ...], site: str) -> fx.Node:
    """A call_module node with its fake value, at the graph's insertion point."""
    node = program.graph.call_module(name, args)
    return finish(program, node, site)


def call(program: Program, target: Any, args: tuple[Any, ...], site: str, **kwargs: Any) -> fx.Node:
    """A call_function node with its fake value, at the graph's insertion point."""
    node = program.graph.call_function(target, args, kwargs)
    return finish(program, node, site)


def finish(program: Program, node: fx.Node, site: str) -> fx.Node:
    """Give a new node its value and the module path it belongs to."""
    node.meta["module"] = site
    set_value(program, node)
    return node


def pieces(program: Program, kind: type[Module]) -> list[tuple[fx.Node, Module]]:
    """The call_module nodes whose submodule is of a kind, with it, in the graph's order."""
    found = []
    for node in program.graph.nodes:
        if node.op == "call_module":
            module = attribute(program, str(node.target))
            if isinstance(module, kind):
                found.append((node, module))
    return found


def chosen(node: fx.Node, only: Collection[str] | None) -> bool:
    """Whether a piece belongs to one of the named insertions; all do for None."""
    name = piece_name(node.target)
    return only is None or (name is not None and name.insertion in only)


def current(node: fx.Node, reader: fx.Node | None = None) -> fx.Node:
    """What `node` has become after earlier insertions: for everyone, or for one reader of it."""
    while True:
        own = node.meta.get("replaced_for", {}).get(reader)
        after = own or node.meta.get("replaced_by")
        if after is None:
            return node
        node = after


def redirect(
    old: fx.Node, new: fx.Node, readers: tuple[fx.Node, ...], *, own: bool = False
) -> None:
    """Let `readers` read `new` where they read `old`, and later insertions at `old` follow.

    A piece that stands parallel to a reader reads what that reader reads. With `own`, only later
    insertions for the same readers follow.
    """
    for reader in readers:
        reader.replace_input_with(old, new)
        for piece in reader.meta.get("parallel", ()):
            piece.replace_input_with(old, new)
    if own:
        old.meta.setdefault("replaced_for", {}).update(dict.fromkeys(readers, new))
    else:
        old.meta["replaced_by"] = new


def after(*nodes: fx.Node | None) -> AbstractContextManager[None]:
    """New nodes go behind the last of `nodes`, in the order in which they are made."""
    last = max(n for n in nodes if n is not None)
    return last.graph.inserting_before(last.next)
