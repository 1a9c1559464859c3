"""ids -> [dummy; ids]: room in front of a stack's tokens for all of its prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.capture.values import refresh
from peftc.capture.walk import ancestors, descendants
from peftc.dataflow.site import Embedding, Sites
from peftc.passes.base import END, Pass, after, call, current, refuse

aten = torch.ops.aten


@dataclass
class Lengthen(Pass):
    """Makes the inputs of one stack longer by dummy tokens, which prompts overwrite later.

    %ids  ->  [dummy * before; %ids[:1]; dummy * behind; %ids[1:]]

    The mask grows by ones and the token types by zeros in the same places. Every length in the
    graph is read from these, so positions and masks follow by themselves. All prompts of a stack
    share this one pass; each of them knows its own rows.
    """

    embedding: Embedding
    sites: Sites
    before: int  # dummy tokens in front of the first token
    behind: int  # dummy tokens between the first token and the second
    dummy: int  # a token id that is neither padding nor an end mark
    trim: bool = True
    padding: bool = True  # whether what else reads the ids sees which are padding
    given: dict[fx.Node, fx.Node] = field(default_factory=dict)  # longer inputs -> as given

    @property
    def tokens(self) -> int:
        """How many tokens are added."""
        return self.before + self.behind

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"lengthen {self.embedding.site.name} by {self.tokens}"

    def run(self, program: Program) -> None:
        """Lengthen the ids and every input that shares their length axis."""
        if not self.trim and "input" in self.embedding.ids.meta:
            raise refuse(
                "the head picks tokens by the ids as they are given, so it cannot see the prompt",
                code="E110",
                help=("trim: true",),
            )
        end = self.end()
        ids = current(self.embedding.ids)
        fills = self.fills(program, ids)
        last = max(*fills, *map(current, program.graph.find_nodes(op="placeholder")))
        short = self.short_readers(program, ids, end if self.is_attended(end) else None)
        for node, fill in fills.items():
            readers = [r for r in node.users if r not in short]
            with after(last):
                new = self.padded(program, node, fill)
            if node is ids and not self.padding:
                self.hide_padding(program, readers, node, new)
            for reader in readers:
                reader.replace_input_with(node, new)  # nothing is left to do for hidden ones
                reader.meta["stale"] = True
            self.given[new] = node
            node.meta["replaced_by"] = new
        refresh(program)

    def end(self) -> fx.Node | None:
        """The stack's last value as it is now, (batch, length, width)."""
        end = self.sites.ends.get(self.embedding.site.stack)
        return None if end is None else with_length(current(end))

    def is_attended(self, end: fx.Node | None) -> bool:
        """Whether keys and values of some attention come from the stack's end."""
        after = set() if end is None else descendants(end)
        return any(a.k in after for a in self.sites.attentions)

    def longer_axis(self, node: fx.Node) -> int | None:
        """The axis of a value that is as long as the ids with the prompts; None where none is."""
        longer = str(self.embedding.ids.meta["val"].shape[1] + self.tokens)
        shape = getattr(node.meta.get("val"), "shape", ())
        return next((k for k, size in enumerate(shape) if str(size) == longer), None)

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
        sees the prompts.
        """
        if attended is None:
            return set()
        others = [n for n in program.graph.nodes if "input" in n.meta and n is not ids]
        apart = ancestors(*others) | set(others)
        inside = ancestors(attended, *(a.node for a in self.sites.attentions))
        return {n for n in ids.users if n in apart or n not in inside}

    def hide_padding(
        self, program: Program, readers: list[fx.Node], ids: fx.Node, longer: fx.Node
    ) -> None:
        """Let all but the embedding read ids of which none is padding, as many as there are."""
        h = self.embedding.site.h
        embeds = ancestors(h) | {h}
        with after(longer):
            plain = call(program, aten.full_like.default, (longer, self.dummy), "")
        for reader in readers:
            if reader not in embeds and reader.op != "call_module":
                reader.replace_input_with(ids, plain)

    def padded(self, program: Program, node: fx.Node, fill: int) -> fx.Node:
        """`node` with the dummies, `fill`, before and behind its first column."""
        if not self.behind:
            return call(program, aten.constant_pad_nd.default, (node, [self.before, 0], fill), "")
        head = call(program, aten.slice.Tensor, (node, 1, 0, 1), "")
        rest = call(program, aten.slice.Tensor, (node, 1, 1, END), "")
        pad = [self.before, self.behind]
        head = call(program, aten.constant_pad_nd.default, (head, pad, fill), "")
        return call(program, aten.cat.default, ([head, rest], 1), "")

    def without_prompts(self, program: Program, node: fx.Node, axis: int) -> fx.Node:
        """`node` without the rows of the prompts."""
        path = node.meta["module"]
        with after(node):
            rest = call(
                program, aten.slice.Tensor,
                (node, axis, self.tokens + int(self.behind > 0), END), path,
            )  # fmt: skip
            if not self.behind:
                return rest
            first = (node, axis, self.before, self.before + 1)
            head = call(program, aten.slice.Tensor, first, path)
            return call(program, aten.cat.default, ([head, rest], axis), path)

    def zero_at_prompts(self, program: Program, node: fx.Node) -> fx.Node:
        """(..., longer, width)  ->  the same with zeros in the rows of the prompts."""
        axis = self.longer_axis(node)
        if axis is None:
            return node
        path = node.meta["module"]
        behind_it = [0, 0] * (node.meta["val"].dim() - 1 - axis)  # sizes of later axes stay
        with after(node):
            stop = self.tokens + int(self.behind > 0)
            rest = call(program, aten.slice.Tensor, (node, axis, stop, END), path)
            if not self.behind:
                pad = (rest, [*behind_it, self.before, 0], 0.0)
                return call(program, aten.constant_pad_nd.default, pad, path)
            first = (node, axis, self.before, self.before + 1)
            head = call(program, aten.slice.Tensor, first, path)
            pad = (head, [*behind_it, self.before, self.behind], 0.0)
            head = call(program, aten.constant_pad_nd.default, pad, path)
            return call(program, aten.cat.default, ([head, rest], axis), path)


def with_length(end: fx.Node | None) -> fx.Node | None:
    """The stream's end as (batch, length, width), behind the views of blocks that flatten rows."""
    while end is not None and end.meta["val"].dim() != 3:
        readers = list(end.users)
        end = readers[0] if len(readers) == 1 else None
    return end
