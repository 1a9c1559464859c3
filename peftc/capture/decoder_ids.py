"""input_ids -> decoder_input_ids inside the graph, as classifiers with two stacks make them.

A sequence classifier or question answerer with an encoder and a decoder is given the text once:
its own code makes the decoder's ids of it, a shift to the right, and the head reads the last end
mark's state. One trace of the model as it is called shows what it makes the ids of. A second one,
in which they are an input of another length, keeps the lengths of the two stacks apart, as every
analysis and pass needs them. Then the first one's computation takes the place of that input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from peftc.capture.inputs import Example, with_decoder
from peftc.capture.normalise import normalise
from peftc.capture.program import Program, attribute, build, targets_of
from peftc.capture.trace import trace
from peftc.capture.values import set_value
from peftc.capture.walk import back_to_inputs, data_ancestors

aten = torch.ops.aten
IDS, DECODER_IDS = "input_ids", "decoder_input_ids"
COUNTS = (aten.arange.default, aten.arange.start, aten.arange.start_step, aten.cumsum.default)
VIEWS = (aten.reshape.default, aten.clone.default, aten.alias.default, aten.expand.default)


class LastMarked(TorchFunctionMode):
    """x[mask], (batch, length, width) by (batch, length)  ->  each row's last marked state.

    Classifiers take all marked states, as many in every row, and go on with the last.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and (mask := mask_of(*args)) is not None:
            x = args[0]
            last = (mask.long().cumsum(1) * mask).argmax(1)  # reads no length but the mask's own
            index = last[:, None, None].expand(-1, 1, x.shape[2])
            return x.gather(1, index).squeeze(1)
        return func(*args, **(kwargs or {}))


def mask_of(x: Any, index: Any) -> Tensor | None:
    """The mask (batch, length) that picks states of x (batch, length, width), or None."""
    first, *rest = index if isinstance(index, tuple) else (index,)
    picks = isinstance(first, Tensor) and first.dtype == torch.bool and first.dim() == 2
    if picks and x.dim() == 3 and all(r == slice(None) for r in rest):
        return first
    return None


def capture_derived(model: Any, example: Example) -> Program:
    """The Program of a model that makes its decoder's ids of the ids it is given.

    Raises:
        PeftcError: E201 where torch.export cannot capture it.
    """
    called = normalise(trace(model, example), model, example)
    ids = derived_ids(called)
    if ids is None:
        return called
    both = with_decoder(example, model)
    with LastMarked():
        exported = trace(model, both)
    return joined(normalise(exported, model, both), called, ids, example)


def derived_ids(program: Program) -> fx.Node | None:
    """What another embedding than that of the ids looks up: computed of them, and no positions."""
    for node in program.graph.nodes:
        if node.target is aten.embedding.default:
            index = plain(node.args[1])
            made_of = data_ancestors(index)
            given = {n.name for n in made_of if n.op == "placeholder"}
            counts = any(n.target in COUNTS for n in made_of)
            if index.op != "placeholder" and given == {IDS} and not counts:
                return index
    return None


def joined(program: Program, called: Program, ids: fx.Node, example: Example) -> Program:
    """%decoder_input_ids, an input  ->  what `called` computes as %ids.

    Its fake value keeps a length of its own, so that a prompt before one stack does not make the
    other longer.
    """
    graph = program.graph
    given = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    decoder = given.pop(DECODER_IDS)
    new = {n: given[n.name] for n in called.graph.nodes if n.op == "placeholder"}
    made_of = back_to_inputs(ids)
    with graph.inserting_before(decoder.next):
        for node in called.graph.nodes:
            if node in made_of and node not in new:
                new[node] = copied(node, called, program, new)
                if node.target is aten.sym_size.int:
                    new[node].args = of_ids(node, given[IDS], example)
                new[node].meta["module"] = ""
                set_value(program, new[node])
    made = new[ids]
    made.meta |= {"input": DECODER_IDS, "val": decoder.meta["val"]}
    decoder.replace_all_uses_with(made)
    graph.erase_node(decoder)
    length = {"decoder_sequence": example.inputs[0].dims[1]}
    outputs = tuple(
        replace(o, dims=tuple(length.get(str(d), d) for d in o.dims))
        for o in program.signature.outputs
    )
    signature = replace(program.signature, inputs=example.inputs, outputs=outputs)
    return build(targets_of(program), graph, signature)


def copied(
    node: fx.Node, called: Program, program: Program, new: dict[fx.Node, fx.Node]
) -> fx.Node:
    """One node of `called` in the other's graph, its constant under a name of its own."""
    graph = program.graph
    if node.op == "get_attr":
        name = f"{DECODER_IDS}_{node.target}".replace(".", "_")
        program.register_buffer(name, attribute(called, str(node.target)))
        return graph.get_attr(name)
    if node.target is aten.squeeze.default:  # would take the axis of a single row as well
        args = (new[node.args[0]], ones_of(node))  # type: ignore[index]
        return graph.call_function(aten.squeeze.dims, args)
    return graph.node_copy(node, new.__getitem__)


def of_ids(node: fx.Node, ids: fx.Node, example: Example) -> tuple[fx.Node, int]:
    """A size of some input, as one of the ids: what else is made longer is not read."""
    read, axis = node.args
    dims = {i.name: i.dims for i in example.inputs}
    return ids, dims[IDS].index(dims[read.name][axis])  # type: ignore[union-attr,index]


def ones_of(node: fx.Node) -> list[int]:
    """The axes of what a node reads that are always of size 1."""
    shape = node.all_input_nodes[0].meta["val"].shape
    return [k for k, size in enumerate(shape) if isinstance(size, int) and size == 1]


def plain(node: Any) -> fx.Node:
    """The value behind views of it."""
    while node.target in VIEWS:
        node = node.args[0]
    return node
