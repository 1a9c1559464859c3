"""h  ->  h composed with piece(x): adapters, low-rank updates, vectors and pipes at a site."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from peftc.capture.fake import has_numbers
from peftc.capture.piece_name import Part, PieceName, container
from peftc.capture.program import Program, attribute
from peftc.capture.walk import ancestors
from peftc.dataflow.site import Site, Weight
from peftc.passes.base import (
    Pass,
    add_module,
    after,
    call,
    call_module,
    current,
    finish,
    redirect,
    refuse,
)
from peftc.passes.lengthen import Lengthen
from peftc.passes.tasks import task_ids
from peftc.pieces.bank import Bank
from peftc.pieces.gate import Gate

aten = torch.ops.aten


@dataclass
class Insert(Pass):
    """Changes the value h of one site for the nodes that read it.

    add:       %h  ->  add(%h, piece(%x), alpha=scale)
    multiply:  %h  ->  mul(%h, piece())
    gate:      %h  ->  gate(%h, piece(%x)[, %y])
    add with a gate:   %h  ->  add(%h, gate(piece(%x)[, %y]), alpha=scale)

    Where features do not stand last, all of this is done on permute(%h), and turned back.

    %y is what the gate reads.
    %x is what the insertion reads: "h" itself, "x", the input of the model's piece that makes h,
    or "stream", the value that the next block would read: h + residual, through the norm that
    follows the addition where there is one.
    """

    id: str
    sites: Sequence[Site]
    pieces: Sequence[nn.Module]
    reads: str
    compose: Any  # kind and options, as the spec has them
    reads_input: bool = True
    gates: Sequence[Gate | Bank] = ()
    gate_reads: str = "none"
    scales: Collection[float] = (1.0,)  # of a sum: one, or those of the tasks, in their pieces
    prompted: Sequence[Lengthen] = ()  # of the stacks that have a prompt already
    waiting: Sequence[Lengthen] = ()  # of the stacks that get one later

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"insert {container(self.id)} at {len(self.sites)} sites"

    def run(self, program: Program) -> None:
        """Insert each piece and redirect the readers of its h."""
        gates = self.gates or [None] * len(self.pieces)
        for site, piece, gate in zip(self.sites, self.pieces, gates, strict=True):
            self.insert(program, site, piece, gate)

    def insert(
        self, program: Program, site: Site, piece: nn.Module, gate: Gate | Bank | None
    ) -> None:
        """Insert one piece."""
        name = PieceName(self.id, site.name)
        given_h, weight = current(site.h, site.readers[0] if site.own else None), site.weight
        h = features_last(program, site, given_h)
        x = self.source(program, site, h, self.reads, piece) if self.reads_input else None
        add_module(program, str(name), piece)
        if getattr(piece, "mixes_tokens", False) and x is not None and x.meta["val"].dim() != 3:
            raise refuse(
                f"{site.module} flattens its rows, so that tokens have no neighbours there",
                help=("a `pipe` without conv1d", "another site"),
            )
        if getattr(piece, "mixes_tokens", False) and self.reads_room(site):
            raise refuse(
                f"{site.module} would read the room that is kept for a prompt behind it",
                help=("put it behind the prompt, `at: embed.out`",),
            )
        given = () if x is None else (x,)
        if isinstance(piece, Bank):
            given = (task_ids(program), *given)
        if getattr(piece, "reads_weight", False):
            given = (*given, *self.linear_parts(program, site, h, piece))
        with after(h, *given):
            node = call_module(program, str(name), given, site.module)
        if site.lookup is not None and getattr(piece, "looks_up", False):
            node = self.looked_up(program, site, node)
        made = node if gate is None else self.gated(program, site, h, node, x, gate, name)
        if gate is None or self.compose.kind != "gate" or is_part(site):
            delta = self.scattered(program, site, made, weight) if is_part(site) else made  # type: ignore[arg-type]
            made = self.composed(program, site, h, delta)
        redirect(given_h, as_before(program, site, made), site.readers, own=site.own)
        if weight is not None:
            beside = [node] if self.reads == "x" else []
            if self.gate_reads == "x":
                beside += [n for n in node.users if n.target == str(name.of(Part.GATE))]
            weight.node.meta.setdefault("parallel", []).extend(beside)

    @property
    def scale(self) -> float:
        """What the sum multiplies a delta with; 1 where each task's pieces do it themselves."""
        return next(iter(self.scales)) if len(set(self.scales)) == 1 else 1.0

    def source(
        self, program: Program, site: Site, h: fx.Node, reads: str, piece: nn.Module | None
    ) -> fx.Node:
        """The node that the piece or the gate reads."""
        if reads == "x" and site.x is not None:
            return current(site.x)
        if reads == "x" and site.lookup is not None and getattr(piece, "looks_up", False):
            return current(site.lookup.ids)
        if reads == "stream" and site.stream is not None:
            return joined(program, site, h, current(site.stream))
        return own_rows(program, site, h)

    def looked_up(self, program: Program, site: Site, delta: fx.Node) -> fx.Node:
        """A delta of looked-up rows, with none at the rows of prompts that stand there already."""
        for room in self.prompted:
            h = room.embedding.site.h
            if site.h is h or site.h in ancestors(h):
                delta = room.zero_at_prompts(program, delta)
        return delta

    def reads_room(self, site: Site) -> bool:
        """Whether the rows of some prompt are dummies at a site when it is computed."""
        return any(site.h is r.embedding.site.h for r in self.waiting) or any(
            site.h in ancestors(r.embedding.site.h) for r in (*self.prompted, *self.waiting)
        )

    def gated(
        self,
        program: Program,
        site: Site,
        h: fx.Node,
        delta: fx.Node,
        x: fx.Node | None,
        gate: Gate | Bank,
        name: PieceName,
    ) -> fx.Node:
        """The delta behind its gate: what is added to h, or for `gate` what h becomes.

        At a part of a fused projection also that is a difference, to be added at its rows.
        """
        given: tuple[fx.Node, ...] = (delta,)
        if self.gate_reads != "none" and self.gate_reads == self.reads and x is not None:
            given = (delta, x)
        elif self.gate_reads != "none":
            given = (delta, self.source(program, site, h, self.gate_reads, None))
        convex = self.compose.kind == "gate"
        own = own_rows(program, site, h) if convex else None
        given = given if own is None else (own, *given)
        given = (task_ids(program), *given) if isinstance(gate, Bank) else given
        target = str(name.of(Part.GATE))
        add_module(program, target, gate)
        with after(*given):
            node = call_module(program, target, given, site.module)
        if own is None or not is_part(site):
            return node
        with after(node):
            return call(program, aten.sub.Tensor, (node, own), site.module)

    def linear_parts(
        self, program: Program, site: Site, h: fx.Node, piece: nn.Module
    ) -> list[fx.Node]:
        """The features of h that belong to the site, and the rows of W and b that make them.

        W is read by a node of its own, so that folding sees who reads the linear's.
        """
        weight, path = site.weight, site.module
        if weight is None:
            raise refuse(f"{path} is no linear", help=("use `bottleneck` or `pipe` there",))
        parts: list[fx.Node] = []
        value = attribute(program, weight.name)
        with after(h):
            if weight.bias is not None:
                parts.append(finish(program, program.graph.get_attr(weight.bias), path))
            node = finish(program, program.graph.get_attr(weight.name), path)
            if weight.transposed:
                node, value = call(program, aten.t.default, (node,), path), value.T
        rows = weight.rows
        if weight.fused:
            start, stop = rows[0], rows[-1] + 1
            if rows != tuple(range(start, stop)):
                raise refuse(
                    f"the rows of {path} are interleaved with those of other sites",
                    help=("`low_rank` reads no weight and can stand there",),
                )
            with after(node):
                node = call(program, aten.slice.Tensor, (node, 0, start, stop), path)
                parts = [call(program, aten.slice.Tensor, (b, 0, start, stop), path) for b in parts]
                if site.h is weight.node:
                    h = call(program, aten.slice.Tensor, (h, -1, start, stop), path)
            value = value[start:stop]
        if has_numbers(value):
            piece.start(value)  # type: ignore[operator]
        return [h, node, *parts]

    def scattered(self, program: Program, site: Site, delta: fx.Node, weight: Weight) -> fx.Node:
        """(..., rows) -> (..., out): the delta at its rows of a fused projection, else neutral."""
        neutral = 1.0 if self.compose.kind == "multiply" else 0.0
        rows, path = weight.rows, site.module
        with after(delta):
            if rows == tuple(range(rows[0], rows[0] + len(rows))):
                pad = [rows[0], weight.out_width - rows[-1] - 1]
                return call(program, aten.constant_pad_nd.default, (delta, pad, neutral), path)
            padded = call(program, aten.constant_pad_nd.default, (delta, [0, 1], neutral), path)
        place = {row: k for k, row in enumerate(rows)}
        index = torch.tensor([place.get(j, len(rows)) for j in range(weight.out_width)])
        name = f"{delta.name}_rows"
        program.register_buffer(name, index)
        with after(padded):
            node = finish(program, program.graph.get_attr(name), path)
            return call(program, aten.index_select.default, (padded, -1, node), path)

    def composed(self, program: Program, site: Site, h: fx.Node, delta: fx.Node) -> fx.Node:
        """H composed with the delta, as the spec says."""
        path = site.module
        with after(h, delta):
            if self.compose.kind == "multiply":
                return call(program, aten.mul.Tensor, (h, delta), path)
            scale = {} if self.scale == 1 else {"alpha": self.scale}
            return call(program, aten.add.Tensor, (h, delta), path, **scale)


def is_part(site: Site) -> bool:
    """Whether h is a fused projection of which the site is a part."""
    return site.weight is not None and site.weight.fused and site.h is site.weight.node


def features_last(program: Program, site: Site, h: fx.Node) -> fx.Node:
    """%h  ->  permute(%h), where features do not stand last: (..., width)."""
    if site.features in (None, -1):
        return h
    dims = h.meta["val"].dim()
    order = [k for k in range(dims) if k != site.features] + [site.features]
    with after(h):
        return call(program, aten.permute.default, (h, order), site.module)


def as_before(program: Program, site: Site, h: fx.Node) -> fx.Node:
    """%h with its features last  ->  permute(%h), as the model has it."""
    if site.features is None or site.features == -1:
        return h
    dims = h.meta["val"].dim()
    order = list(range(dims - 1))
    order.insert(site.features, dims - 1)
    with after(h):
        return call(program, aten.permute.default, (h, order), site.module)


def own_rows(program: Program, site: Site, h: fx.Node) -> fx.Node:
    """The features of h that are the site's: all of them, but for a part of a projection."""
    weight = site.weight
    if weight is None or not is_part(site):
        return h
    rows = weight.rows
    if rows == tuple(range(rows[0], rows[-1] + 1)):
        with after(h):
            return call(program, aten.slice.Tensor, (h, -1, rows[0], rows[-1] + 1), site.module)
    name = f"{h.name}_part_{site.name}"
    program.register_buffer(name, torch.tensor(rows))
    with after(h):
        index = finish(program, program.graph.get_attr(name), site.module)
    with after(index):
        return call(program, aten.index_select.default, (h, -1, index), site.module)


def joined(program: Program, site: Site, h: fx.Node, stream: fx.Node) -> fx.Node:
    """H + stream, and the norm over it where all that reads their sum is one norm."""
    with after(h, stream):
        node = call(program, aten.add.Tensor, (h, stream), site.module)
    follows = following_norm(site)
    if follows is None:
        return node
    with after(node, *follows.all_input_nodes[1:]):
        return call(
            program,
            follows.target,
            (node, *follows.args[1:]),
            follows.meta["module"],
            **follows.kwargs,
        )


def following_norm(site: Site) -> fx.Node | None:
    """The norm that alone reads h's residual sum, or None.

    None also where the block starts with a norm: behind its last sum stands the stack's own.
    """
    before = [] if site.stream is None else [*site.stream.users, *current(site.stream).users]
    if any(n.target is aten.layer_norm.default for n in before):
        return None
    for add in site.readers:
        readers = list(add.users)
        if len(readers) == 1 and readers[0].target is aten.layer_norm.default:
            return readers[0]
    return None
