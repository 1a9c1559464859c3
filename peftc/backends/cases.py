"""What an exported file is run on: ids over the vocabulary, both kinds of padding, many lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.inputs import sound_sizes, text_config, vocabulary_of
from peftc.capture.program import Input, Program, attribute

aten = torch.ops.aten
# (batch, length, padding): none is the size that graphs are traced with.
SHAPES = (
    (1, 2, ""), (1, 7, ""), (4, 12, "right"), (3, 13, "left"), (2, 33, "right"), (2, 128, "both"),
)  # fmt: skip
LONGEST = 512
CHUNK = (8, 64)  # the size of a case that is there for the ids in it
COST = 3e10  # multiplications and additions that cases beyond SHAPES may take
WIDE = 1 << 24  # numbers that their outputs may have
DEEP = 100  # how many times as much a thorough comparison may take
FIRST = 2  # tokens that are never padding


@dataclass(frozen=True)
class Case:
    """One call: a value for every input, in the signature's order.

    `core` cases are there for their size and padding, the others for their length or ids.
    """

    values: dict[str, Tensor]
    batch: int
    length: int
    padded: str
    core: bool = True

    def hidden(self, *, real_only: bool = False) -> list[Tensor]:
        """The masks (batch, length) whose zeros are positions that no one may compare.

        What a query gives that sees no key, as in front of a text that is padded on the left, is
        another number in every kernel.
        """
        if not real_only and self.padded in ("", "right"):
            return []
        return [v for n, v in self.values.items() if n.endswith("attention_mask")]


def cases_for(graph: Program, *, deep: bool = False) -> tuple[list[Case], int, int]:
    """(cases, how many ids are in them, how many there are); no ids where a graph reads no text.

    All ids are in them where that costs no more than COST, a hundred times that with `deep`.
    """
    maker = Maker(graph)
    limit = longest(graph)
    tasks = [(i.below, 9, "right") for i in graph.signature.inputs if i.below is not None]
    shapes = dict.fromkeys((b, min(s, limit), p) for b, s, p in (*SHAPES, *tasks))
    found = [maker.case(b, s, p) for b, s, p in shapes]
    left = affordable(graph) * (DEEP if deep else 1)
    length = min(limit, LONGEST)
    if maker.reads_text and 128 < length <= left:
        found.append(maker.case(1, length, "", core=False))
        left -= length
    batch, length = CHUNK[0], min(CHUNK[1], limit)
    for padding in maker.until_all_seen():
        if (left := left - batch * length) < 0:
            break
        found.append(maker.case(batch, length, padding, core=False))
    return found, len(maker.seen), maker.vocabulary if maker.reads_text else 0


def affordable(graph: Program) -> float:
    """How many tokens may be run, from the multiplications and the outputs that each takes."""
    takes = set(graph.graph.find_nodes(op="call_function", target=aten.embedding.default))
    read = [n for n in graph.graph.find_nodes(op="get_attr") if n.users.keys() - takes]
    inside = {n.target: attribute(graph, str(n.target)) for n in read}
    numbers = sum(t.numel() for t in inside.values() if isinstance(t, Tensor))
    numbers += sum(p.numel() for _, p in graph.peft_parameters())
    widths = [o.dims[-1] for o in graph.signature.outputs if isinstance(o.dims[-1], int)]
    return min(COST / (2 * max(numbers, 1)), WIDE / max(widths, default=1))


def longest(graph: Program) -> int:
    """The longest text that a model's positions allow, beside what is inserted before it."""
    config = text_config(graph.signature.config)
    own = getattr(config, "max_position_embeddings", None) or 128 + 2
    # Of a graph that is not applied: two rows, since some models count from the padding id on.
    return min(graph.signature.longest.values(), default=own - 2)


class Maker:
    """Makes cases; ids come from one shuffled vocabulary after the other."""

    def __init__(self, graph: Program) -> None:
        self.config: Any = graph.signature.config
        self.inputs = graph.signature.inputs
        self.random = torch.Generator().manual_seed(0)
        everything = vocabulary_of(self.config)
        self.below = {
            i.name: rows_read(graph, i.name) or everything
            for i in self.inputs
            if i.dtype == torch.long and i.name.endswith("input_ids")
        }
        self.reads_text = bool(self.below)
        self.vocabulary = min(self.below.values(), default=0)
        self.types = rows_read(graph, "token_type_ids") or int(
            getattr(text_config(self.config), "type_vocab_size", None) or 1
        )
        self.order = torch.empty(0, dtype=torch.long)
        self.seen: set[int] = set()

    def until_all_seen(self) -> Iterator[str]:
        """A kind of padding for each further case, as long as there are ids in no case yet."""
        turn = 0
        while self.reads_text and len(self.seen) < self.vocabulary and turn < self.vocabulary:
            yield ("", "right", "left", "both")[turn % 4]
            turn += 1

    def case(self, batch: int, length: int, padding: str, *, core: bool = True) -> Case:
        """A case of a size."""
        decoder = max(1, min(length, LONGEST // 4) - 1)
        sizes = {"batch": batch, "sequence": length, "decoder_sequence": decoder}
        sizes = sound_sizes(sizes, self.config)
        padding = padding if batch > 1 and length > 3 else ""
        values: dict[str, Tensor] = {}
        for i in self.inputs:
            shape = [sizes[d] if isinstance(d, str) else d for d in i.dims]
            if i.name.endswith("mask"):
                values[i.name] = self.mask(shape, padding if self.reads_text else "right")
            elif not i.name.endswith("input_ids") or i.dtype != torch.long:
                values[i.name] = self.other(i, shape, sizes)
            else:
                values[i.name] = torch.empty(shape, dtype=torch.long)
        for i in self.inputs:  # once the masks are there
            if i.name in self.below:
                mask = values.get(i.name.replace("input_ids", "attention_mask"))
                values[i.name] = self.ids(i, values[i.name].shape, mask)
        return Case({i.name: values[i.name] for i in self.inputs}, batch, length, padding, core)

    def mask(self, shape: list[int], padding: str) -> Tensor:
        """Ones, with zeros behind the texts of all rows but the first, in front of them, or both.

        With "both" the rows take turns, and the first has none.
        """
        mask = torch.ones(shape, dtype=torch.long)
        length = shape[-1]
        for row in range(1, shape[0] if padding and length > FIRST else 0):
            count = self.number(1, max(1, length - max(FIRST, length // 3)))
            left = padding == "left" or (padding == "both" and row % 2 == 1)
            mask[row, slice(0, count) if left else slice(length - count, None)] = 0
        return mask

    def number(self, low: int, high: int) -> int:
        """A random number from `low` to `high`."""
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def other(self, i: Input, shape: list[int], sizes: dict[str, int]) -> Tensor:
        """What is neither a mask nor a text: choices, types, images and sound."""
        if i.below is not None:  # every choice in turn, another one first at every length
            count = torch.arange(torch.Size(shape).numel()) + sizes["sequence"]
            return (count % i.below).reshape(shape)
        if i.dtype == torch.long:
            types = self.types if i.name == "token_type_ids" else 1
            return torch.randint(0, types, shape, generator=self.random)
        return torch.randn(shape, generator=self.random).to(i.dtype)

    def ids(self, i: Input, shape: torch.Size, mask: Tensor | None) -> Tensor:
        """Ids that were in no case yet, as far as there are any, and the padding id at padding."""
        real = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()
        below = self.below[i.name]
        drawn = self.draw(int(real.sum())) % below
        if i.end is not None:
            drawn = drawn.masked_fill(drawn == i.end, (i.end + 1) % below)
        pad = getattr(text_config(self.config), "pad_token_id", None)
        ids = torch.full(shape, pad if isinstance(pad, int) and 0 <= pad < below else 0)
        ids[real] = drawn
        if i.end is not None:  # every row has two: at its start, and where its text ends
            places = torch.arange(shape[1]).expand(shape)
            first = places.masked_fill(~real, shape[1]).min(1).values
            rows, last = torch.arange(shape[0]), places.masked_fill(~real, -1).max(1).values
            ids[rows, first] = ids[rows, last] = i.end
        self.seen.update(ids[real].tolist())
        return ids

    def draw(self, count: int) -> Tensor:
        """The next ids of the shuffled vocabulary."""
        while len(self.order) < count:
            more = torch.randperm(self.vocabulary, generator=self.random)
            self.order = torch.cat([self.order, more])
        drawn, self.order = self.order[:count], self.order[count:]
        return drawn


def rows_read(graph: Program, name: str) -> int | None:
    """The rows of the smallest table that an input of the graph chooses from, where there is one.

    The input is followed through what leaves its numbers as they are.
    """
    waiting = [n for n in graph.graph.nodes if n.op == "placeholder" and n.name == name]
    rows: list[int] = []
    while waiting:
        node = waiting.pop()
        for user in node.users:
            table = user.args[0] if user.target == aten.embedding.default else None
            if isinstance(table, fx.Node) and user.args[1] is node:
                rows.append(int(table.meta["val"].shape[0]))
            elif user.target in SAME and user.args[0] is node:
                waiting.append(user)
    return min(rows, default=None)


# What gives the same ids in another shape.
SAME = frozenset({
    aten.view.default, aten.reshape.default, aten.alias.default, aten.clone.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.contiguous.default,
})  # fmt: skip
