"""[P; h] -> h behind a stack's last block: what comes after sees the real tokens only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from peftc.capture.program import Program
from peftc.capture.values import refresh
from peftc.capture.walk import ancestors, descendants
from peftc.passes.base import Pass, after
from peftc.passes.lengthen import Lengthen


@dataclass
class Trim(Pass):
    """Cuts the rows of a stack's prompts off again, behind its last block and in the outputs.

    %end  ->  %end[tokens:]   for what reads it: a norm, a pooler, a head, another stack's input

    A stack that another one attends to keeps the rows inside (the decoder reads the prompt), and
    only the outputs are cut. It runs behind all insertions, so that one at the last block sees
    the prompts as those at the others do.
    """

    room: Lengthen

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"trim {self.room.embedding.site.name} by {self.room.tokens}"

    def run(self, program: Program) -> None:
        """Cut the stream where nothing attends to it, and the outputs."""
        end = self.room.end()
        longer = end is not None and self.room.longer_axis(end) is not None
        if end is not None and longer and not self.room.is_attended(end):
            self.cut_stream(program, end)
        self.cut_outputs(program)

    def cut_stream(self, program: Program, end: fx.Node) -> None:
        """Everything behind the stack's end reads the real tokens and the inputs as given."""
        body = ancestors(end) | {end}
        given = dict(self.room.given)
        embedded = descendants(self.room.embedding.site.h)
        shorter: dict[fx.Node, fx.Node] = {}
        for node in list(program.graph.nodes):
            if node in body or node in given:
                continue
            for source in node.all_input_nodes:
                if source not in body and source not in given:
                    continue
                if source not in embedded:
                    new = self.as_given(program, source, given)
                elif source in shorter:
                    new = shorter[source]
                elif (axis := self.room.longer_axis(source)) is not None:
                    new = shorter[source] = self.room.without_prompts(program, source, axis)
                else:
                    continue
                node.replace_input_with(source, new)
                node.meta["stale"] = True
        refresh(program)

    def as_given(self, program: Program, node: fx.Node, given: dict[fx.Node, fx.Node]) -> fx.Node:
        """`node` computed from the inputs as given; itself where it does not depend on them."""
        if node in given:
            return given[node]
        if node.op != "call_function":
            return node
        inputs = {n: self.as_given(program, n, given) for n in node.all_input_nodes}
        if all(new is old for old, new in inputs.items()):
            return node
        with after(node):
            copy = program.graph.node_copy(node, inputs.__getitem__)
        copy.meta = {"module": node.meta["module"], "stale": True}
        given[node] = copy
        return copy

    def cut_outputs(self, program: Program) -> None:
        """Cut every output axis that is still longer than the inputs' own."""
        output, signature = program.graph.output_node(), program.signature
        # Ids that the graph computes are as long as its first input.
        own = signature.input(self.room.embedding.ids.name) or signature.inputs[0]
        returned = list(output.args[0])  # type: ignore[arg-type]
        for k, (node, described) in enumerate(zip(returned, signature.outputs, strict=True)):
            for axis, size in enumerate(described.dims):
                if size == own.dims[1] and self.is_longer(node, axis):
                    returned[k] = self.room.without_prompts(program, returned[k], axis)
        output.args = (tuple(returned),)

    def is_longer(self, node: fx.Node, axis: int) -> bool:
        """Whether an axis of a value is as long as the ids with the prompts."""
        longer = str(self.room.embedding.ids.meta["val"].shape[1] + self.room.tokens)
        return str(node.meta["val"].shape[axis]) == longer
