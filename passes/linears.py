"""Frozen linears of a graph, in the forms that models write them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

aten = torch.ops.aten
SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b, or x W + b where `transposed`. `alone`: the weight serves only this node."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    transposed: bool

    @property
    def alone(self) -> bool:
        """Whether no other node reads the weight."""
        return len(self.weight.users) == 1 and parameter_readers(self.weight) == [self.weight]


def parameter_readers(node: fx.Node) -> list[fx.Node]:
    """Every node that stands for the same parameter as `node` does, itself among them."""
    return list(node.graph.find_nodes(op="get_attr", target=node.target))


def narrowed(value: fx.Node, rows: range, axis: int) -> Iterator[tuple[fx.Node, range]]:
    """What reads a parameter, past its transposition and slicing, and which features of it.

    The features lie along `axis` of `value`.
    """
    for reader in value.users:
        if reader.target is aten.t.default:
            yield from narrowed(reader, rows, 1 - axis)
        elif reader.target is aten.slice.Tensor and reader.args[1:2] == (axis,):
            _, _, start, stop = reader.args
            yield from narrowed(reader, rows[start:stop], axis)  # type: ignore[misc]
        else:
            yield reader, rows


def linear_of(node: fx.Node) -> Linear | None:
    """The linear that gives exactly `node`'s value: aten.linear, or addmm between two views."""
    if node.target is aten.linear.default:
        x, weight, *rest = node.args
        bias = rest[0] if rest else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            return Linear(node, x, weight, bias, False)  # type: ignore[arg-type]
    if node.target is aten.reshape.default and isinstance(node.args[0], fx.Node):
        inner = node.args[0]
        if inner.target is aten.addmm.default and len(inner.users) == 1:
            bias, flat, weight = inner.args
            if (
                isinstance(flat, fx.Node)
                and flat.target is aten.reshape.default
                and isinstance(weight, fx.Node)
                and weight.op == "get_attr"
            ):
                return Linear(node, flat.args[0], weight, bias, True)  # type: ignore[arg-type]
    return None


def maker_of(node: fx.Node) -> tuple[Linear, slice] | None:
    """The linear that makes `node`, whole or as one part of its split, and the features of it."""
    linear = linear_of(node)
    return (linear, slice(None)) if linear is not None else widths_of_split(node)


def widths_of_split(node: fx.Node) -> tuple[Linear, slice] | None:
    """The fused linear and the output features that `node`, one part of its split, holds."""
    if node.target is operator.getitem:
        split, k = node.args
        if isinstance(split, fx.Node) and split.target in SPLITS:
            whole = split.args[0]
            axis = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
            parts = split.meta["val"]
            linear = linear_of(whole)  # type: ignore[arg-type]
            if linear is None or axis not in (-1, parts[0].dim() - 1):
                return None
            start = sum(int(p.shape[-1]) for p in parts[:k])  # type: ignore[misc]
            return linear, slice(start, start + int(parts[k].shape[-1]))  # type: ignore[index]
    return None
