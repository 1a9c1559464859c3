"""mask(inputs)  ->  the last rows of mask([1; inputs]): the mask of a model with cached tokens."""

from __future__ import annotations

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.passes.base import call, finish

aten = torch.ops.aten
END = torch.iinfo(torch.int64).max


def cached_mask(program: Program, mask: fx.Node, tokens: int) -> fx.Node:
    """The mask that the model makes where its cache already holds `tokens` visible tokens.

    mask: (..., length, keys)  ->  (..., length, tokens + keys).  What the mask is computed from is
    computed again from inputs that are `tokens` longer in front, so that windows and relative
    biases count from there; the rows of the earlier tokens are cut off. A mask of one row for all
    queries keeps its one row.

    Raises:
        RuntimeError: where the mask depends on weights that project activations, so that it is
            not a function of positions and padding alone.
    """
    needed = sources(mask)
    longer: dict[fx.Node, fx.Node] = {}
    axis = length_axis(program, needed)
    with program.graph.inserting_before(mask.next):
        for node in program.graph.nodes:
            if node not in needed:
                continue
            if node.op == "placeholder":
                longer[node] = lengthened(program, node, axis, tokens)
            elif node.op == "call_function":
                copy = program.graph.node_copy(node, lambda n: longer.get(n, n))
                longer[node] = finish(program, copy, node.meta.get("module", ""))
            elif node.op == "call_module":
                raise RuntimeError(f"the attention mask depends on {node.name}")
        whole = longer[mask]
        rows = whole.meta["val"].shape[-2]
        if str(rows) == "1":
            return whole
        path = mask.meta.get("module", "")
        return call(program, aten.slice.Tensor, (whole, -2, tokens, END), path)


def sources(node: fx.Node) -> set[fx.Node]:
    """The node and everything it is computed from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        n = waiting.pop()
        if n not in found:
            found.add(n)
            waiting += n.all_input_nodes
    return found


def length_axis(program: Program, needed: set[fx.Node]) -> str:
    """The name of the length axis of the mask's stack: the decoder's where it reads both."""
    named = [i for i in program.signature.inputs if len(i.dims) > 1]
    used = [i.dims[1] for i in named if any(n.name == i.name for n in needed)]
    lengths = [d for d in used if isinstance(d, str)]
    if not lengths:
        raise RuntimeError("the attention mask does not depend on inputs with a free length")
    return next((d for d in lengths if d.startswith("decoder")), lengths[0])


def lengthened(program: Program, node: fx.Node, axis: str, tokens: int) -> fx.Node:
    """An input with `tokens` ones in front, where it has that length axis."""
    given = next(i for i in program.signature.inputs if i.name == node.name)
    if len(given.dims) != 2 or given.dims[1] != axis:
        return node
    return call(program, aten.constant_pad_nd.default, (node, [tokens, 0], 1), "")
