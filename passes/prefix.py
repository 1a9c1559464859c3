"""attn(q, k, v)  ->  attn(q, [P_k; k], [P_v; v]): trainable keys and values in front."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.site import Attention, Position
from peftc.diagnostics import error
from peftc.passes.base import Pass, add_module, after, call, call_module, current
from peftc.passes.cached_mask import cached_mask
from peftc.passes.tasks import task_ids
from peftc.passes.values import refresh
from peftc.passes.written_attention import attend_beside
from peftc.pieces.bank import Bank, HiddenScores, Lengths, LongerMask, ShiftedRows
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
    pieces: Sequence[Prefix | Bank]
    lengths: Sequence[int]  # one for all tasks, or one a task
    reparam: Reparameterization | Bank | None = None
    cached: bool = False

    @property
    def tokens(self) -> int:
        """The length of the longest."""
        return max(self.lengths)

    @property
    def uneven(self) -> bool:
        """Whether tasks have prefixes of different lengths, so that rows need masks."""
        return len(set(self.lengths)) > 1

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
            rows = (task_ids(program),) if isinstance(piece, Bank) else ()
            first = attention.node if attention.scores is None else attention.scores
            with program.graph.inserting_before(first):
                pair = call_module(program, target, (*rows, k, v, *given), path)
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
                attend_beside(program, attention, k_new, v_new, self.hidden(program))
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
            rows = (task_ids(program),) if isinstance(self.reparam, Bank) else ()
            table = call_module(program, target, rows, "")
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
            causal = is_causal(attention.node)
            if not causal and not self.uneven:
                return None
            return self.own_mask(program, attention, causal)
        mask = current(mask)
        if self.cached and self.uneven:
            raise RuntimeError("`mask: cached` needs prefixes of one length for all tasks")
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
                masks[mask] = self.padded(program, full, keep)
        return masks[mask]

    def padded(self, program: Program, mask: fx.Node, keep: float) -> fx.Node:
        """A mask with the prefix's columns in front; of each row, as many as its own prefix has."""
        path = mask.meta["module"]
        if self.uneven:
            target = self.helper(program, "mask", LongerMask)
            return call_module(program, target, (task_ids(program), mask), path)
        pad = (mask, [self.tokens, 0], keep)
        return call(program, aten.constant_pad_nd.default, pad, path)

    def hidden(self, program: Program) -> Callable[[fx.Node], fx.Node] | None:
        """For an attention that is written out: its prefix's scores, spare tokens hidden."""
        if not self.uneven:
            return None
        target = self.helper(program, "hide", HiddenScores)
        rows = task_ids(program)
        return lambda scores: call_module(program, target, (rows, scores), scores.meta["module"])

    def helper(self, program: Program, name: str, kind: type[Lengths]) -> str:
        """The path of a module that all attentions share."""
        target = f"peft.{self.id}.{name}"
        if name not in program.get_submodule(f"peft.{self.id}")._modules:
            device = task_ids(program).meta["val"].device
            add_module(program, target, kind(self.lengths).to(device))
        return target

    def widened(self, program: Program, mask: fx.Node, attention: Attention) -> fx.Node:
        """A mask of one column for all keys, as one column a key."""
        k = current(attention.k)
        with after(mask, k):
            keys = call(program, aten.sym_size.int, (k, 2), attention.module)
        sizes = [-1] * (mask.meta["val"].dim() - 1)
        with after(keys):
            return call(program, aten.expand.default, (mask, [*sizes, keys]), attention.module)

    def own_mask(self, program: Program, attention: Attention, causal: bool) -> fx.Node:
        """What no mask means, or `is_causal`, as one: (length, tokens + keys)."""
        path, q, k = attention.module, current(attention.q), current(attention.k)
        rows = call(program, aten.sym_size.int, (q, 2), path)
        columns = call(program, aten.sym_size.int, (k, 2), path)
        device = q.meta["val"].device
        ones = call(
            program, aten.ones.default, ([rows, columns],), path, dtype=torch.bool, device=device
        )
        mask = call(program, aten.tril.default, (ones,), path) if causal else ones
        return self.padded(program, mask, 1.0)


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
    by: int | ShiftedRows
    target: str = ""  # the path of a module that shifts rows apart

    @property
    def name(self) -> str:
        """What reports call this pass."""
        by = self.by if isinstance(self.by, int) else ", ".join(map(str, self.by.sizes))
        return f"shift positions by {by}"

    def run(self, program: Program) -> None:
        """Add `by` on every edge through which positions enter."""
        shifted: dict[fx.Node, fx.Node] = {}
        for p in self.positions:
            node = current(p.positions)
            if node not in shifted:
                shifted[node] = self.shifted(program, node)
            p.reader.replace_input_with(node, shifted[node])
            p.reader.meta["stale"] = not isinstance(self.by, int)
        refresh(program)

    def shifted(self, program: Program, node: fx.Node) -> fx.Node:
        """The positions moved: all rows alike, or each by its own prefix."""
        path = node.meta["module"]
        if isinstance(self.by, int):
            with after(node):
                return call(program, aten.add.Tensor, (node, self.by), path)
        rows, shape = task_ids(program), node.meta["val"].shape
        if len(shape) < 2 or str(shape[0]) not in ("1", str(rows.meta["val"].shape[0])):
            raise RuntimeError(
                "its positions have no axis of rows: `positions: keep`, or one length"
            )
        add_module(program, self.target, self.by.to(rows.meta["val"].device))
        with after(node, rows):
            return call_module(program, self.target, (rows, node), path)
