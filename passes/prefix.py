"""attn(q, k, v)  ->  attn(q, [P_k; k], [P_v; v]): trainable keys and values in front."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.site import Attention, Position, Site
from peftc.diagnostics import error
from peftc.passes.base import Pass, add_module, after, call, call_module, current, redirect
from peftc.passes.cached_mask import cached_mask
from peftc.passes.infix import Infix
from peftc.passes.tasks import task_ids
from peftc.passes.values import refresh, set_value
from peftc.passes.written_attention import END, attend_beside
from peftc.pieces.bank import Bank, HiddenScores, Lengths, LongerMask, ShiftedRows
from peftc.pieces.gate import Valve
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
    make with `tokens` earlier tokens in its cache, its relative biases among it. With `infix` the
    queries before a token do not see the prefix.
    """

    id: str
    attentions: Sequence[Attention]
    pieces: Sequence[Prefix | Bank]
    lengths: Sequence[int]  # one for all tasks, or one a task
    reparam: Reparameterization | Bank | None = None
    cached: bool = False
    gates: Sequence[Valve | Bank] = ()
    queries: Sequence[Site] = ()  # with gates: of each attention, which read what its gate reads
    infix: Infix | None = None

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
        """Insert the prefix at every attention, behind a gate where it has one."""
        parts = self.shared_parts(program)
        masks: dict[tuple[fx.Node, str], fx.Node] = {}
        for n, (attention, piece) in enumerate(zip(self.attentions, self.pieces, strict=True)):
            path, target = attention.module, f"peft.{self.id}.{attention.name}"
            add_module(program, target, piece)
            k, v, _ = read_by(attention)
            given = tuple(parts[2 * n : 2 * n + 2])
            rows = (task_ids(program),) if isinstance(piece, Bank) else ()
            first = attention.node if attention.scores is None else attention.scores
            while not v < first:
                v = v.all_input_nodes[0]  # what v is a view of: v itself comes behind the scores
            with program.graph.inserting_before(first):
                pair = call_module(program, target, (*rows, k, v, *given), path)
                k_new = call(program, operator.getitem, (pair, 0), path)
                v_new = call(program, operator.getitem, (pair, 1), path)
            valve = self.valve(program, n, target) if self.gates else None
            if attention.scores is None:
                self.join(program, attention, k_new, v_new, masks)
                if valve is not None:
                    self.split(program, attention, valve)
            elif self.cached:
                raise error(
                    "E110",
                    f"`mask: cached` needs an attention kernel; {path} is written out",
                    help=("--attn sdpa, where the model has it", "mask: open"),
                )
            else:
                attend_beside(
                    program, attention, k_new, v_new, valve, self.infix, self.spare(program)
                )
        refresh(program)

    def valve(self, program: Program, n: int, target: str) -> Callable[[fx.Node], fx.Node]:
        """What puts a value (batch, heads, length, ...) of the n-th attention behind its gate."""
        site, name = self.queries[n], f"{target}_gate"
        if site.x is None or site.x.meta["val"].dim() != 3:
            raise RuntimeError(f"{site.module} flattens its rows: a gate has no tokens to read")
        x = current(site.x)
        add_module(program, name, self.gates[n])
        rows = (task_ids(program),) if isinstance(self.gates[n], Bank) else ()

        def behind(value: fx.Node) -> fx.Node:
            with after(value, x):
                node = call_module(program, name, (*rows, value, x), site.module)
            if site.weight is not None:
                site.weight.node.meta.setdefault("parallel", []).append(node)
            return node

        return behind

    def split(
        self, program: Program, attention: Attention, valve: Callable[[fx.Node], fx.Node]
    ) -> None:
        """Let each query see g P_k and g P_v, with a g of its own, in one kernel.

        %o = sdpa(%q, [P_k; k], [P_v; v])
          ->  %o = sdpa([%q, g %q], [[0, P_k]; [k, 0]], [[0, P_v]; [v, 0]]);  %o[v] + g %o[P_v]
        """
        node, path = attention.node, attention.module
        q, k, v, *rest = node.args
        width, out_width = attention.head_dim, attention.value_dim
        gated = valve(q)  # type: ignore[arg-type]
        with program.graph.inserting_before(node):
            wide = call(program, aten.cat.default, ([q, gated], -1), path)
            keys = self.apart(program, k, width, path)  # type: ignore[arg-type]
            values = self.apart(program, v, out_width, path)  # type: ignore[arg-type]
        node.args = (wide, keys, values, *rest)
        if node.kwargs.get("scale") is None:
            node.kwargs = {**node.kwargs, "scale": width**-0.5}
        set_value(program, node)
        users = list(node.users)
        with after(node):
            own = call(program, aten.slice.Tensor, (node, -1, 0, out_width), path)
            seen = call(program, aten.slice.Tensor, (node, -1, out_width, 2 * out_width), path)
        seen = valve(seen)
        with after(own, seen):
            total = call(program, aten.add.Tensor, (own, seen), path)
        for user in users:
            user.replace_input_with(node, total)

    def apart(self, program: Program, joined: fx.Node, width: int, path: str) -> fx.Node:
        """[P; k]  ->  [[0, P]; [k, 0]]: the prefix in features of its own."""
        prefix = call(program, aten.slice.Tensor, (joined, 2, 0, self.tokens), path)
        others = call(program, aten.slice.Tensor, (joined, 2, self.tokens, END), path)
        prefix = call(program, aten.constant_pad_nd.default, (prefix, [width, 0], 0.0), path)
        others = call(program, aten.constant_pad_nd.default, (others, [0, width], 0.0), path)
        return call(program, aten.cat.default, ([prefix, others], 2), path)

    def join(
        self,
        program: Program,
        attention: Attention,
        k: fx.Node,
        v: fx.Node,
        masks: dict[tuple[fx.Node, str], fx.Node],
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
        self,
        program: Program,
        attention: Attention,
        masks: dict[tuple[fx.Node, str], fx.Node],
    ) -> fx.Node | None:
        """The mask with `tokens` columns in front that keep: True, or 0.0 to be added."""
        _, _, mask = read_by(attention)
        if mask is None:
            causal = is_causal(attention.node)
            made = self.own_mask(program, attention, causal) if causal or self.uneven else None
            return self.hidden(program, made, attention)
        if self.cached and self.uneven:
            raise RuntimeError("`mask: cached` needs prefixes of one length for all tasks")
        shared = (mask, attention.stack if self.infix else "")
        if shared not in masks and self.cached:
            if mask is not current(attention.mask):  # type: ignore[arg-type]
                raise error(
                    "E110",
                    f"{attention.module} has a prefix already, which a cache would not hold apart",
                    help=("mask: open",),
                )
            masks[shared] = cached_mask(program, mask, self.tokens)
        if shared not in masks:
            value = mask.meta["val"]
            keep = 1.0 if value.dtype == torch.bool else 0.0
            with after(mask):
                full = mask
                if str(value.shape[-1]) == "1":
                    full = self.widened(program, mask, attention)
            with after(full):
                made = self.padded(program, full, keep)
            masks[shared] = self.hidden(program, made, attention)  # type: ignore[assignment]
        return masks[shared]

    def hidden(
        self, program: Program, mask: fx.Node | None, attention: Attention
    ) -> fx.Node | None:
        """A longer mask that also hides the prefix from the queries before it."""
        if self.infix is None:
            return mask
        k, _, _ = read_by(attention)
        return self.infix.hide(program, mask, attention, k, self.tokens)

    def padded(self, program: Program, mask: fx.Node, keep: float) -> fx.Node:
        """A mask with the prefix's columns in front; of each row, as many as its own prefix has."""
        path = mask.meta["module"]
        if self.uneven:
            target = self.helper(program, "mask", LongerMask)
            return call_module(program, target, (task_ids(program), mask), path)
        pad = (mask, [self.tokens, 0], keep)
        return call(program, aten.constant_pad_nd.default, pad, path)

    def spare(self, program: Program) -> Callable[[fx.Node], fx.Node] | None:
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
        k, _, _ = read_by(attention)
        with after(mask, k):
            keys = call(program, aten.sym_size.int, (k, 2), attention.module)
        sizes = [-1] * (mask.meta["val"].dim() - 1)
        with after(keys):
            return call(program, aten.expand.default, (mask, [*sizes, keys]), attention.module)

    def own_mask(self, program: Program, attention: Attention, causal: bool) -> fx.Node:
        """What no mask means, or `is_causal`, as one: (length, tokens + keys)."""
        path, q, (k, _, _) = attention.module, current(attention.q), read_by(attention)
        rows = call(program, aten.sym_size.int, (q, 2), path)
        columns = call(program, aten.sym_size.int, (k, 2), path)
        device = q.meta["val"].device
        ones = call(
            program, aten.ones.default, ([rows, columns],), path, dtype=torch.bool, device=device
        )
        mask = call(program, aten.tril.default, (ones,), path) if causal else ones
        return self.padded(program, mask, 1.0)


def read_by(attention: Attention) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """The keys, values and mask of an attention as they are now, behind earlier prefixes."""
    if attention.scores is not None:
        mask = None if attention.mask is None else current(attention.mask)
        return current(attention.k), current(attention.v), mask
    args = list(attention.node.args) + [None] * (4 - len(attention.node.args))
    return args[1], args[2], args[3] or attention.node.kwargs.get("attn_mask")  # type: ignore[return-value]


def is_causal(node: fx.Node) -> bool:
    """Whether an SDPA node masks the future by itself."""
    return bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))


@dataclass
class ShiftPositions(Pass):
    """%reader(%positions)  ->  %reader(add(%positions, P)): real tokens start at position P.

    What a cache of P earlier tokens does to the model's own positions. Relative positions among
    real tokens do not change, so relative biases are left alone. With `infix` only the tokens
    behind it move: %reader(add(%positions, mul(%behind, P))).
    """

    positions: Sequence[Position]
    by: int | ShiftedRows
    infix: Infix | None = None
    target: str = ""  # the path of a module that shifts rows apart

    @property
    def name(self) -> str:
        """What reports call this pass."""
        where = "" if self.infix is None else f" from token {self.infix.before}"
        by = self.by if isinstance(self.by, int) else ", ".join(map(str, self.by.sizes))
        return f"shift positions by {by}{where}"

    def run(self, program: Program) -> None:
        """Add `by` on every edge through which positions enter."""
        shifted: dict[fx.Node, fx.Node] = {}
        for p in self.positions:
            node = current(p.positions, p.reader)
            if node not in shifted:
                shifted[node] = self.shift(program, node, p.stack)
            redirect(node, shifted[node], (p.reader,), own=True)
            p.reader.meta["stale"] = self.infix is not None or not isinstance(self.by, int)
        refresh(program)

    def shift(self, program: Program, node: fx.Node, stack: str) -> fx.Node:
        """The positions, moved."""
        path = node.meta["module"]
        if isinstance(self.by, ShiftedRows):
            return self.by_rows(program, node, self.by)
        if self.infix is None:
            with after(node):
                return call(program, aten.add.Tensor, (node, self.by), path)
        behind = self.infix.behind(program, stack)
        batch, length = map(str, behind.meta["val"].shape)
        first, *others = map(str, node.meta["val"].shape)
        if first not in ("1", batch) or sorted(set(others) - {"1"}) != [length]:
            raise error(
                "E110",
                f"the positions that {path} reads have no row for each example, "
                "so that only some of them could count on behind an infix",
                help=("positions: keep",),
            )
        with after(node, behind):
            for axis, size in enumerate(others, 1):
                if size == "1":
                    behind = call(program, aten.unsqueeze.default, (behind, axis), path)
            number = call(program, aten._to_copy.default, (behind,), path, dtype=torch.int64)
            by = call(program, aten.mul.Tensor, (number, self.by), path)
            return call(program, aten.add.Tensor, (node, by), path)

    def by_rows(self, program: Program, node: fx.Node, by: ShiftedRows) -> fx.Node:
        """The positions, each row moved by the length of its own task's prefix."""
        path = node.meta["module"]
        rows, shape = task_ids(program), node.meta["val"].shape
        if len(shape) < 2 or str(shape[0]) not in ("1", str(rows.meta["val"].shape[0])):
            raise RuntimeError(
                "its positions have no axis of rows: `positions: keep`, or one length"
            )
        add_module(program, self.target, by.to(rows.meta["val"].device))
        with after(node, rows):
            return call_module(program, self.target, (rows, node), path)
