"""What a graph gives for many inputs at once, and how far rounding moves that, by float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from peftc.capture.program import Program
from peftc.capture.streaming import Streaming

aten = torch.ops.aten
# Numbers that are only put elsewhere: these are done to a weight once, in its own dtype.
MOVES = frozenset({
    aten.t.default, aten.transpose.int, aten.permute.default, aten.view.default,
    aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor,
    aten.select.int, aten.alias.default, aten.detach.default,
})  # fmt: skip
PART = 1 << 24  # numbers of a weight that are in memory in float64 at a time


@dataclass
class Values:
    """A node's value in every case: in the graph's own dtype, and in float64 for some."""

    own: list[Any]
    wide: list[Any]


class Together(Streaming):
    """Runs a Program node by node, on all cases: a weight on disk is read once for all.

    Cases whose numbers are in `measured` are run in float64 besides. `failed` says why, where an
    operation has no such form: then there is nothing to measure with.
    """

    def __init__(
        self, program: Program, cases: Sequence[Sequence[Tensor]], measured: Sequence[int]
    ) -> None:
        super().__init__(program)
        self.cases, self.measured = cases, list(measured)
        self.failed = ""

    def outputs(self) -> tuple[list[tuple[Tensor, ...]], dict[int, tuple[Tensor, ...]]]:
        """(the outputs of every case, those in float64 by the number of their case)."""
        columns = [
            Values(list(column), [wider(column[k]) for k in self.measured])
            for column in zip(*self.cases, strict=True)
        ]
        with torch.no_grad():
            found: Values = self.run(*columns)
        wide = dict(zip(self.measured, found.wide, strict=True)) if not self.failed else {}
        return found.own, wide

    def run_node(self, n: fx.Node) -> Any:
        """One node: a weight, which all cases share, or its value in each case."""
        if n.op in ("placeholder", "get_attr"):
            return super().run_node(n)
        inputs = [self.env[i] for i in n.all_input_nodes]
        if n.target in MOVES and not any(isinstance(i, Values) for i in inputs):
            return self.computed(n, lambda value: value)
        do = self.computed
        own = [do(n, lambda v, k=k: v.own[k] if isinstance(v, Values) else v)
               for k in range(len(self.cases))]  # fmt: skip
        try:
            wide = [] if self.failed else self.widely(n)
        except (RuntimeError, NotImplementedError, TypeError) as cause:
            self.failed, wide = f"{n.target}: {cause}", []
        return Values(own, wide)

    def computed(
        self, n: fx.Node, pick: Callable[[Any], Any], change: Callable[[Any], Any] | None = None
    ) -> Any:
        """The node's value, with `pick` of its inputs' values, all arguments through `change`."""
        args: Any
        kwargs: Any
        args, kwargs = map_arg((n.args, dict(n.kwargs)), lambda i: pick(self.env[i]))
        if change is not None:
            args, kwargs = tree_map(change, (args, kwargs))
        if n.op == "output":
            return tuple(args[0])
        if n.op == "call_method":
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            return (doubled(module) if change is not None else module)(*args, **kwargs)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def widely(self, n: fx.Node) -> list[Any]:
        """The node's value in float64, in each case that is measured."""
        count = range(len(self.measured))
        if n.target == aten.embedding.default and (weight := self.weight(n.args[0])) is not None:
            rest = n.args[1:]
            return [
                wider(aten.embedding.default(weight, *self.picked(rest, k)))  # rows, not the table
                for k in count
            ]
        if n.target == aten.linear.default and (weight := self.weight(n.args[1])) is not None:
            return self.in_parts(n, weight)
        made: dict[int, Any] = {}  # of the weights that this node reads, each once

        def change(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) in shared:
                return made.setdefault(id(value), wider(value))
            return wider(value)

        shared = {id(v) for i in n.all_input_nodes if isinstance(v := self.env[i], Tensor)}
        return [
            self.computed(n, lambda v, k=k: v.wide[k] if isinstance(v, Values) else v, change)
            for k in count
        ]

    def weight(self, given: Any) -> Tensor | None:
        """What an argument is in every case alike, if it is a weight."""
        value = self.env.get(given) if isinstance(given, fx.Node) else None
        return value if isinstance(value, Tensor) else None

    def picked(self, args: Any, k: int) -> Any:
        """Arguments in one of the measured cases."""

        def one(i: fx.Node) -> Any:
            value = self.env[i]
            return value.wide[k] if isinstance(value, Values) else value

        return map_arg(args, one)

    def in_parts(self, n: fx.Node, weight: Tensor) -> list[Any]:
        """X W^T + b in float64, some rows of W at a time."""
        rows = max(1, PART // max(1, weight.shape[1]))
        given = [tree_map(wider, self.picked((n.args[0], *n.args[2:]), k))
                 for k in range(len(self.measured))]  # fmt: skip
        parts: list[list[Tensor]] = [[] for _ in given]
        for start in range(0, weight.shape[0], rows):
            part = weight[start : start + rows].double()
            for found, (x, *bias) in zip(parts, given, strict=True):
                b = bias[0][start : start + rows] if bias and bias[0] is not None else None
                found.append(nn.functional.linear(x, part, b))
        return [torch.cat(found, -1) for found in parts]


def wider(value: Any) -> Any:
    """A floating tensor, or the name of such a dtype, as float64; all else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def doubled(module: nn.Module) -> nn.Module:
    """A copy of a piece in float64."""
    return copy.deepcopy(module).double()
