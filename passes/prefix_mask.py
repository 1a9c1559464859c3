"""mask  ->  [0, mask]: every query sees a prefix, or those that are to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from peftc.capture.piece_name import Part, PieceName
from peftc.capture.program import Program
from peftc.dataflow.site import Attention
from peftc.passes.base import add_module, after, call, call_module, current, refuse
from peftc.passes.cached_mask import cached_mask
from peftc.passes.infix import Infix
from peftc.passes.tasks import task_ids
from peftc.pieces.bank import HiddenScores, Lengths, LongerMask

aten = torch.ops.aten


@dataclass
class PrefixMask:
    """The masks of one insertion's prefixes; one that several layers share is padded once.

    `lengths` are those of all tasks, or one. Keys outside a sliding window stay visible: the
    mask's new columns say "keep" for every query. With `cached` the mask is what the model itself
    would make with as many earlier tokens in its cache, its relative biases among it. With `infix`
    the queries before a token do not see the prefix.
    """

    id: str
    lengths: Sequence[int]
    cached: bool = False
    infix: Infix | None = None
    made: dict[tuple[fx.Node, str], fx.Node] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """The length of the longest."""
        return max(self.lengths)

    @property
    def uneven(self) -> bool:
        """Whether tasks have prefixes of different lengths, so that rows need masks."""
        return len(set(self.lengths)) > 1

    def longer(self, program: Program, attention: Attention) -> fx.Node | None:
        """The mask with `tokens` columns in front that keep: True, or 0.0 to be added."""
        _, _, mask = read_by(attention)
        if mask is None:
            causal = is_causal(attention.node)
            made = self.own_mask(program, attention, causal) if causal or self.uneven else None
            return self.hidden(program, made, attention)
        if self.cached and self.uneven:
            raise refuse("`mask: cached` needs prefixes of one length for all tasks")
        shared = (mask, attention.stack if self.infix else "")
        if shared not in self.made and self.cached:
            if mask is not current(attention.mask):  # type: ignore[arg-type]
                raise refuse(
                    f"{attention.module} has a prefix already, which a cache would not hold apart",
                    code="E110",
                    help=("mask: open",),
                )
            self.made[shared] = cached_mask(program, mask, self.tokens)
        if shared not in self.made:
            value = mask.meta["val"]
            keep = 1.0 if value.dtype == torch.bool else 0.0
            with after(mask):
                full = mask
                if str(value.shape[-1]) == "1":
                    full = self.widened(program, mask, attention)
            with after(full):
                made = self.padded(program, full, keep)
            self.made[shared] = self.hidden(program, made, attention)  # type: ignore[assignment]
        return self.made[shared]

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
            target = self.helper(program, Part.MASK, LongerMask)
            return call_module(program, target, (task_ids(program), mask), path)
        pad = (mask, [self.tokens, 0], keep)
        return call(program, aten.constant_pad_nd.default, pad, path)

    def spare(self, program: Program) -> Callable[[fx.Node], fx.Node] | None:
        """For an attention that is written out: its prefix's scores, spare tokens hidden."""
        if not self.uneven:
            return None
        target = self.helper(program, Part.HIDE, HiddenScores)
        rows = task_ids(program)
        return lambda scores: call_module(program, target, (rows, scores), scores.meta["module"])

    def helper(self, program: Program, part: Part, kind: type[Lengths]) -> str:
        """The path of a module that all attentions share."""
        target = str(PieceName(self.id, part=part))
        if target not in dict(program.named_modules()):
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
    _, k, v, mask, *_ = arguments(attention.node)
    return k, v, mask or attention.node.kwargs.get("attn_mask")  # type: ignore[return-value]


def arguments(node: fx.Node) -> list[Any]:
    """The positional arguments of an SDPA node, with a place for the mask: q, k, v, mask, ..."""
    return [*node.args, *[None] * (4 - len(node.args))]


def is_causal(node: fx.Node) -> bool:
    """Whether an SDPA node masks the future by itself."""
    return bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))
