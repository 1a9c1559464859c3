"""attn(q, k, v)  ->  attn(q, [P_k; k], [P_v; v]): trainable keys and values in front."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.site import Attention, Position
from peftc.diagnostics import error
from peftc.passes.base import Pass, add_module, after, call, call_module, current
from peftc.passes.cached_mask import cached_mask
from peftc.passes.values import refresh
from peftc.passes.written_attention import attend_beside
from peftc.pieces.prefix import Prefix, Reparameterization

aten = torch.ops.aten


@dataclass
class InsertPrefix(Pass):
    """Lets every query of the given attentions see `tokens` trained keys and values.

    %o = sdpa(%q, %k, %v, %mask)
      ->  %kv = peft.<id>.<site>(%k, %v); %m = pad(%mask, [tokens, 0], keep)
          %o = sdpa(%q, %kv[0], %kv[1], %m)

    The prefix goes in as the model's own cached keys would: after rotary positions. A mask that
    several layers share is padded once. Keys outside a sliding window stay visible: the mask's
    new columns say "keep" for every query. With `cached` the mask is what the model itself would
    make with `tokens` earlier tokens in its cache, its relative biases among it.
    """

    id: str
    attentions: Sequence[Attention]
    pieces: Sequence[Prefix]
    tokens: int
    reparam: Reparameterization | None = None
    cached: bool = False

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"insert peft.{self.id} ({len(self.attentions)} attentions)"

    def run(self, program: Program) -> None:
        """Insert the prefix at every attention."""
        parts = self.shared_parts(program)
        masks: dict[fx.Node, fx.Node] = {}
        for n, (attention, piece) in enumerate(zip(self.attentions, self.pieces, strict=True)):
            path, target = attention.module, f"peft.{self.id}.{attention.name}"
            add_module(program, target, piece)
            k, v = current(attention.k), current(attention.v)
            given = tuple(parts[2 * n : 2 * n + 2])
            first = attention.node if attention.scores is None else attention.scores
            with program.graph.inserting_before(first):
                pair = call_module(program, target, (k, v, *given), path)
                k_new = call(program, operator.getitem, (pair, 0), path)
                v_new = call(program, operator.getitem, (pair, 1), path)
            if attention.scores is None:
                self.join(program, attention, k_new, v_new, masks)
            elif self.cached:
                raise error(
                    "E110",
                    f"`mask: cached` needs an attention kernel; {path} is written out",
                    help=("--attn sdpa, where the model has it", "mask: open"),
                )
            else:
                attend_beside(program, attention, k_new, v_new)
        refresh(program)

    def join(
        self,
        program: Program,
        attention: Attention,
        k: fx.Node,
        v: fx.Node,
        masks: dict[fx.Node, fx.Node],
    ) -> None:
        """Let the kernel read the longer keys and values, and a longer mask."""
        with program.graph.inserting_before(attention.node):
            mask = self.longer_mask(program, attention, masks)
        args = list(attention.node.args) + [None] * (4 - len(attention.node.args))
        args[1:4] = [k, v, mask]
        if len(args) > 5:
            args[5] = False  # is_causal: the mask says it now
        kwargs = dict(attention.node.kwargs)
        kwargs.pop("attn_mask", None)
        kwargs.pop("is_causal", None)
        attention.node.args, attention.node.kwargs = tuple(args), kwargs
        attention.node.meta["stale"] = True

    def shared_parts(self, program: Program) -> list[fx.Node]:
        """The keys and values that one MLP makes for all sites: a node each, in turn."""
        if self.reparam is None:
            return []
        target = f"peft.{self.id}.reparam"
        add_module(program, target, self.reparam)
        first = next(n for n in program.graph.nodes if n.op not in ("placeholder", "get_attr"))
        with program.graph.inserting_before(first):
            table = call_module(program, target, (), "")
            return [
                call(program, operator.getitem, (table, k), "")
                for k in range(2 * len(self.attentions))
            ]

    def longer_mask(
        self, program: Program, attention: Attention, masks: dict[fx.Node, fx.Node]
    ) -> fx.Node | None:
        """The mask with `tokens` columns in front that keep: True, or 0.0 to be added."""
        mask = attention.mask
        if mask is None:
            if not is_causal(attention.node):
                return None
            return self.causal_mask(program, attention)
        mask = current(mask)
        if mask not in masks and self.cached:
            masks[mask] = cached_mask(program, mask, self.tokens)
        if mask not in masks:
            value = mask.meta["val"]
            keep = 1.0 if value.dtype == torch.bool else 0.0
            with after(mask):
                full = mask
                if str(value.shape[-1]) == "1":
                    full = self.widened(program, mask, attention)
            with after(full):
                pad = (full, [self.tokens, 0], keep)
                masks[mask] = call(program, aten.constant_pad_nd.default, pad, full.meta["module"])
        return masks[mask]

    def widened(self, program: Program, mask: fx.Node, attention: Attention) -> fx.Node:
        """A mask of one column for all keys, as one column a key."""
        k = current(attention.k)
        with after(mask, k):
            keys = call(program, aten.sym_size.int, (k, 2), attention.module)
        sizes = [-1] * (mask.meta["val"].dim() - 1)
        with after(keys):
            return call(program, aten.expand.default, (mask, [*sizes, keys]), attention.module)

    def causal_mask(self, program: Program, attention: Attention) -> fx.Node:
        """What `is_causal` means, as a mask: (length, tokens + keys), the first columns True."""
        path, q, k = attention.module, current(attention.q), current(attention.k)
        rows = call(program, aten.sym_size.int, (q, 2), path)
        columns = call(program, aten.sym_size.int, (k, 2), path)
        device = q.meta["val"].device
        ones = call(
            program, aten.ones.default, ([rows, columns],), path, dtype=torch.bool, device=device
        )
        lower = call(program, aten.tril.default, (ones,), path)
        return call(program, aten.constant_pad_nd.default, (lower, [self.tokens, 0], 1.0), path)


def is_causal(node: fx.Node) -> bool:
    """Whether an SDPA node masks the future by itself."""
    return bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))


@dataclass
class ShiftPositions(Pass):
    """%reader(%positions)  ->  %reader(add(%positions, P)): real tokens start at position P.

    What a cache of P earlier tokens does to the model's own positions. Relative positions among
    real tokens do not change, so relative biases are left alone.
    """

    positions: Sequence[Position]
    by: int

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"shift positions by {self.by}"

    def run(self, program: Program) -> None:
        """Add `by` on every edge through which positions enter."""
        shifted: dict[fx.Node, fx.Node] = {}
        for p in self.positions:
            node = current(p.positions)
            if node not in shifted:
                with after(node):
                    shifted[node] = call(
                        program, aten.add.Tensor, (node, self.by), node.meta["module"]
                    )
            p.reader.replace_input_with(node, shifted[node])
