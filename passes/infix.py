"""(query, key)  ->  whether it is seen: a prefix that stands inside the sequence, an infix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.site import Attention, Embedding
from peftc.passes.base import after, call, refuse

aten = torch.ops.aten


@dataclass
class Infix:
    """Rows in front of the first token `before`: [x; P; y], where y begins with that token.

    They are seen from that token on, by nothing where a row has no such token, and real tokens
    count on behind them from there. Source: Li and Liang 2021, section 6.3.
    """

    before: int
    embeddings: Mapping[str, Embedding]  # of each stack, whose ids are looked at

    def behind(self, program: Program, stack: str) -> fx.Node:
        """%ids  ->  cumsum(%ids == before, 1) > 0: (batch, length), true from the token on."""
        ids = ids_of(self.embeddings[stack])
        with after(ids):
            found = call(program, aten.eq.Scalar, (ids, self.before), "")
            number = call(program, aten._to_copy.default, (found,), "", dtype=torch.int64)
            count = call(program, aten.cumsum.default, (number, 1), "")
            return call(program, aten.gt.Scalar, (count, 0), "")

    def hide(
        self,
        program: Program,
        mask: fx.Node | None,
        attention: Attention,
        k: fx.Node,
        tokens: int,
    ) -> fx.Node:
        """(..., length, tokens + keys)  ->  the same, the first columns hidden before the token."""
        path = attention.module
        seen = self.behind(program, attention.stack)
        with after(*[n for n in (seen, k, mask) if n is not None]):
            rows = by_query(program, seen, path)
            wide = call(program, aten.expand.default, (rows, [-1, -1, -1, tokens]), path)
            keys = call(program, aten.sym_size.int, (k, 2), path)
            may = call(program, aten.constant_pad_nd.default, (wide, [0, keys], 1.0), path)
            if mask is None:
                return may
            value = mask.meta["val"]
            if value.dtype == torch.bool:
                return call(program, aten.logical_and.default, (mask, may), path)
            never = call(program, aten.logical_not.default, (may,), path)
            least = torch.finfo(value.dtype).min
            return call(program, aten.masked_fill.Scalar, (mask, never, least), path)

    def hide_scores(self, program: Program, scores: fx.Node, attention: Attention) -> fx.Node:
        """Scores (batch, heads, length, tokens) with the prefix, hidden before the token."""
        path = attention.module
        if scores.meta["val"].dim() != 4:
            raise refuse(f"{path} has more axes than an infix can be hidden in", code="E110")
        seen = self.behind(program, attention.stack)
        with after(seen, scores):
            rows = by_query(program, seen, path)
            never = call(program, aten.logical_not.default, (rows,), path)
            least = torch.finfo(scores.meta["val"].dtype).min
            return call(program, aten.masked_fill.Scalar, (scores, never, least), path)


def by_query(program: Program, seen: fx.Node, path: str) -> fx.Node:
    """(batch, length)  ->  (batch, 1, length, 1)."""
    rows = call(program, aten.unsqueeze.default, (seen, 1), path)
    return call(program, aten.unsqueeze.default, (rows, 3), path)


def ids_of(embedding: Embedding) -> fx.Node:
    """The ids that an embedding looks up now: with a prompt, those with its rows."""
    waiting = [embedding.site.h]
    while waiting:
        node = waiting.pop()
        table = node.args[0] if node.args else None
        if (
            node.target is aten.embedding.default
            and isinstance(table, fx.Node)
            and table.target == embedding.table
        ):
            return node.args[1]  # type: ignore[return-value]
        waiting += node.all_input_nodes
    raise RuntimeError(f"{embedding.site.name} looks nothing up in {embedding.table}")
