"""ids -> [dummy; ids] and embed(ids) -> [P; embed(ids)]: a soft prompt in front of the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from peftc.capture.piece_name import PieceName
from peftc.capture.program import Program
from peftc.capture.values import refresh
from peftc.capture.walk import ancestors, descendants
from peftc.dataflow.site import Embedding, Sites
from peftc.diagnostics import error
from peftc.passes.base import END, Pass, add_module, after, call, call_module, current, redirect
from peftc.passes.tasks import task_ids
from peftc.pieces.bank import Bank, members
from peftc.pieces.prompt import Prompt

aten = torch.ops.aten


@dataclass
class InsertPrompt(Pass):
    """Puts `tokens` trained rows in front of the embeddings of one stack.

    The ids become `tokens` dummy ids and the real ones, the mask grows by ones and the token
    types by zeros; every length in the graph is read from these, so positions and masks follow
    by themselves, and the dummy rows of the embedding's output are replaced by the prompt. With
    `trim` the residual stream loses these rows again after its last block: what comes after, a
    pooler or a head, sees the real tokens only, at their own places. A stack that another one
    attends to keeps them (the decoder reads the prompt), and only the outputs are cut.
    """

    id: str
    embedding: Embedding
    sites: Sites
    piece: Prompt | Bank  # of a bank, all prompts have one length and place
    dummy: int  # a token id that is neither padding nor an end mark
    trim: bool = True
    padding: bool = True  # whether what else reads the ids sees which are padding

    @property
    def target(self) -> str:
        """The submodule path of the piece."""
        return str(PieceName(self.id, self.embedding.site.name))

    @property
    def shape(self) -> Prompt:
        """A prompt that has the length and place of all."""
        return members(self.piece)[0]

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"insert {self.target}"

    def run(self, program: Program) -> None:
        """Lengthen the inputs, overwrite the dummy rows, and cut the stream or the outputs."""
        end = with_length(self.sites.ends.get(self.embedding.site.stack))
        if not self.trim and "input" in self.embedding.ids.meta:
            raise error(
                "E110",
                "the head picks tokens by the ids as they are given, so it cannot see the prompt",
                help=("trim: true",),
            )
        attended = end is not None and self.is_attended(end)
        longer = self.lengthen(program, end if attended else None)
        h = self.embedding.site.h
        readers = list(h.users)
        prompted = self.prompted(program, h)
        for reader in readers:
            reader.replace_input_with(h, prompted)
        h.meta["replaced_by"] = prompted
        for node in program.graph.nodes:
            if node.op == "call_function" and set(node.all_input_nodes) & set(longer.values()):
                node.meta["stale"] = True
        refresh(program)
        if not self.trim:
            return
        axis = None if end is None else self.longer_axis(end)
        if end is not None and axis is not None and not attended:
            self.cut_stream(program, end, axis, longer)
        self.cut_outputs(program)

    def prompted(self, program: Program, h: fx.Node) -> fx.Node:
        """The prompt over the dummy rows of h, which may be (length, batch, width) as well."""
        add_module(program, self.target, self.piece)
        path, length = self.embedding.site.module, str(self.embedding.ids.meta["val"].shape[1])
        tasks = (task_ids(program),) if isinstance(self.piece, Bank) else ()
        with after(h):
            if str(h.meta["val"].shape[1]) == length:
                return call_module(program, self.target, (*tasks, h), path)
            rows = call(program, aten.transpose.int, (h, 0, 1), path)
            rows = call_module(program, self.target, (*tasks, rows), path)
            return call(program, aten.transpose.int, (rows, 0, 1), path)

    def longer_axis(self, node: fx.Node) -> int | None:
        """The axis of a value that is as long as the ids with the prompt; None where none is."""
        longer = str(self.embedding.ids.meta["val"].shape[1] + self.shape.tokens)
        shape = getattr(node.meta.get("val"), "shape", ())
        return next((k for k, size in enumerate(shape) if str(size) == longer), None)

    def lengthen(self, program: Program, attended: fx.Node | None) -> dict[fx.Node, fx.Node]:
        """The ids and every input that shares their length axis, by its longer version.

        `attended` is the end of the stack, where another one attends to it.
        """
        ids = current(self.embedding.ids)
        fills = self.fills(program, ids)
        given = [n for n in program.graph.nodes if n.op == "placeholder"]
        last = max(*fills, *map(current, given))
        short = self.short_readers(program, ids, attended)
        longer: dict[fx.Node, fx.Node] = {}
        for node, fill in fills.items():
            with after(last):
                new = self.padded(program, node, fill)
                if node is ids and not self.padding:
                    self.hide_padding(program, node, new, short)
            for reader in [r for r in node.users if "lengthens" not in r.meta and r not in short]:
                reader.replace_input_with(node, new)
            longer[node] = new
        return longer

    def fills(self, program: Program, ids: fx.Node) -> dict[fx.Node, int]:
        """What becomes longer, and by what: the ids, and the stack's other inputs, if it has any.

        Ids that are computed inside the graph have none: masks are made in their length.
        """
        found = {ids: self.dummy}
        own = program.signature.input(self.embedding.ids.name)
        if own is None:
            return found
        for n in program.graph.nodes:
            i = program.signature.input(n.name) if n.op == "placeholder" else None
            if i is None or i == own or len(i.dims) != 2 or own.dims[1] not in i.dims:
                continue
            if i.name.startswith("decoder_") == own.name.startswith("decoder_"):
                found[current(n)] = int(i.default == "ones")
        return found

    def short_readers(
        self, program: Program, ids: fx.Node, attended: fx.Node | None
    ) -> set[fx.Node]:
        """What reads the ids as they are given: another stack's ids, and a head behind that stack.

        Of a stack that another one attends to, only what its own attentions are computed from
        sees the prompt.
        """
        if attended is None:
            return set()
        others = [n for n in program.graph.nodes if "input" in n.meta and n is not ids]
        apart = ancestors(*others) | set(others)
        inside = ancestors(attended, *(a.node for a in self.sites.attentions))
        return {n for n in ids.users if n in apart or n not in inside}

    def hide_padding(
        self, program: Program, ids: fx.Node, longer: fx.Node, short: set[fx.Node]
    ) -> None:
        """Let all but the embedding read ids of which none is padding, as many as there are."""
        h = self.embedding.site.h
        embeds = ancestors(h) | {h} | short
        with after(longer):
            plain = call(program, aten.full_like.default, (longer, self.dummy), "")
        plain.meta["lengthens"] = True
        for reader in [r for r in ids.users if "lengthens" not in r.meta]:
            if reader not in embeds and reader.op != "call_module":
                reader.replace_input_with(ids, plain)
                reader.meta["stale"] = True

    def padded(self, program: Program, node: fx.Node, fill: int) -> fx.Node:
        """`node` with `tokens` times `fill` before it, or after its first column."""
        start, pad = self.shape.first, [self.shape.tokens, 0]
        made = []
        rest = node
        if start:
            made.append(call(program, aten.slice.Tensor, (node, 1, 0, start), ""))
            rest = call(program, aten.slice.Tensor, (node, 1, start, END), "")
            made.append(rest)
        new = call(program, aten.constant_pad_nd.default, (rest, pad, fill), "")
        made.append(new)
        if start:
            new = call(program, aten.cat.default, ([made[0], new], 1), "")
            made.append(new)
        for n in made:
            n.meta["lengthens"] = True
        return new

    def is_attended(self, end: fx.Node) -> bool:
        """Whether keys and values of some attention come from the stack's end."""
        after = descendants(end)
        return any(a.k in after for a in self.sites.attentions)

    def cut_stream(
        self, program: Program, end: fx.Node, axis: int, longer: dict[fx.Node, fx.Node]
    ) -> None:
        """Everything after the stack's end reads the real tokens and the inputs as given."""
        body = ancestors(end) | {end}
        readers = tuple(end.users)
        cut = self.without_prompt(program, end, axis)
        cutting = {cut, *(n for n in end.users if n not in readers)}
        redirect(end, cut, readers)
        given = {new: old for old, new in longer.items()}
        embedded = descendants(self.embedding.site.h)
        shorter: dict[fx.Node, fx.Node] = {}  # other values of the stream that are read behind it
        for node in list(program.graph.nodes):
            if node in body or node in cutting or "lengthens" in node.meta:
                continue
            for source in node.all_input_nodes:
                if source not in body or source is end:
                    continue
                if source not in embedded:
                    new = self.as_given(program, source, given)
                elif source in shorter:
                    new = shorter[source]
                elif (at := self.longer_axis(source)) is not None:
                    new = shorter[source] = self.without_prompt(program, source, at)
                else:
                    continue
                node.replace_input_with(source, new)
                node.meta["stale"] = True
        for node in cut.users:
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

    def without_prompt(self, program: Program, node: fx.Node, axis: int) -> fx.Node:
        """`node` without the prompt's rows."""
        start, stop = self.shape.first, self.shape.first + self.shape.tokens
        path = node.meta["module"]
        with after(node):
            rest = call(program, aten.slice.Tensor, (node, axis, stop, END), path)
            if start == 0:
                return rest
            head = call(program, aten.slice.Tensor, (node, axis, 0, start), path)
            return call(program, aten.cat.default, ([head, rest], axis), path)

    def cut_outputs(self, program: Program) -> None:
        """Cut every output axis that is still longer than the inputs' own."""
        output = program.graph.output_node()
        signature = program.signature
        ids = self.embedding.ids
        own = signature.input(ids.name) or signature.inputs[0]  # which computed ids are as long as
        name = own.dims[1]
        longer = str(ids.meta["val"].shape[1] + self.shape.tokens)
        returned = list(output.args[0])  # type: ignore[arg-type]
        for k, (node, described) in enumerate(zip(returned, signature.outputs, strict=True)):
            for axis, size in enumerate(described.dims):
                if size == name and str(node.meta["val"].shape[axis]) == longer:
                    returned[k] = self.without_prompt(program, node, axis)
        output.args = (tuple(returned),)


def with_length(end: fx.Node | None) -> fx.Node | None:
    """The stream's end as (batch, length, width), behind the views of blocks that flatten rows."""
    while end is not None and end.meta["val"].dim() != 3:
        readers = list(end.users)
        end = readers[0] if len(readers) == 1 else None
    return end
