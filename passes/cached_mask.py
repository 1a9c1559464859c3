"""mask(inputs)  ->  the last rows of mask([1; inputs]): the mask of a model with cached tokens."""

from __future__ import annotations

import torch
from torch import fx

from peftc.capture.program import Program, input_name
from peftc.capture.walk import back_to_inputs
from peftc.passes.base import END, call, finish, refuse

aten = torch.ops.aten


def cached_mask(program: Program, mask: fx.Node, tokens: int) -> fx.Node:
    """The mask that the model makes where its cache already holds `tokens` visible tokens.

    mask: (..., length, keys)  ->  (..., length, tokens + keys).  What the mask is computed from is
    computed again from inputs that are `tokens` longer in front, so that windows and relative
    biases count from there; the rows of the earlier tokens are cut off. A mask of one row for all
    queries keeps its one row.

    Raises:
        PeftcError: E120 where the mask depends on weights that project activations, so that it is
            not a function of positions and padding alone.
    """
    needed = back_to_inputs(mask)
    longer: dict[fx.Node, fx.Node] = {}
    length = length_of(needed)
    with program.graph.inserting_before(mask.next):
        for node in program.graph.nodes:
            if node not in needed:
                continue
            if input_name(node) is not None:
                longer[node] = lengthened(program, node, length, tokens)
            elif node.op == "call_function":
                copy = program.graph.node_copy(node, lambda n: longer.get(n, n))
                longer[node] = finish(program, copy, node.meta.get("module", ""))
            elif node.op == "call_module":
                where = mask.meta.get("module") or "the model"
                raise refuse(
                    f"the mask of {where} is made of activations, so that it cannot be made "
                    "again for a longer text",
                    help=("mask: open",),
                )
        whole = longer[mask]
        rows = whole.meta["val"].shape[-2]
        if str(rows) == "1":
            return whole
        path = mask.meta.get("module", "")
        return call(program, aten.slice.Tensor, (whole, -2, tokens, END), path)


def length_of(needed: set[fx.Node]) -> str:
    """The length of the mask's stack, as a symbol: the decoder's where it reads both."""
    inputs = [n for n in needed if input_name(n) is not None and n.meta["val"].dim() > 1]
    free = [n for n in inputs if not isinstance(n.meta["val"].shape[1], int)]
    if not free:
        raise refuse(
            "the attention masks do not depend on inputs of a free length",
            help=("mask: open",),
        )
    decoder = [n for n in free if str(input_name(n)).startswith("decoder_")]
    return str((decoder or free)[0].meta["val"].shape[1])


def lengthened(program: Program, node: fx.Node, length: str, tokens: int) -> fx.Node:
    """An input with `tokens` ones in front, where it has that length."""
    shape = node.meta["val"].shape
    if len(shape) != 2 or str(shape[1]) != length:
        return node
    return call(program, aten.constant_pad_nd.default, (node, [tokens, 0], 1), "")
