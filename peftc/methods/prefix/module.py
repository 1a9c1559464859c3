"""Trainable keys and values in front of attention, and their reparameterisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peftc.pieces.base import ACTIVATIONS, Piece, fit, gathered


class Prefix(Piece):
    """(k, v)  ->  ([P_k; k], [P_v; v]) along the length axis.

    k: (batch, heads, length, head_dim), P_k: (kv_heads, tokens, head_dim), and so for v with
    value_dim. Each key/value head is repeated heads / kv_heads times, as the model repeats its own:
    in a row, or with `tiled` all of them in turn; `spread` does so once, for a graph that is only
    run. A piece that does not join gives (1, heads, tokens, dim) P_k and P_v alone. Without keys
    and values of its own (`own` false) it takes them as further inputs, from a
    `Reparameterization`.
    P ~ N(0, 0.02^2) at the start, or zeros: no prefix is the identity, since its keys take part
    in the softmax. Source: Li and Liang 2021, "Prefix-Tuning"; Liu et al. 2022, "P-Tuning v2".
    """

    kind: ClassVar[str] = "prefix"
    why_apart: ClassVar[str] = "its keys and values are no weights of the model"

    def __init__(
        self,
        tokens: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        *,
        own: bool = True,
        joins: bool = True,
        tiled: bool = False,
        init: str = "normal",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.repeats = heads // kv_heads
        self.joins = joins
        self.tiled = tiled
        self.shapes = ((kv_heads, tokens, head_dim), (kv_heads, tokens, value_dim))
        self.dropout = nn.Dropout(dropout) if dropout else None
        if own:
            self.key = nn.Parameter(torch.zeros(self.shapes[0]))
            self.value = nn.Parameter(torch.zeros(self.shapes[1]))
            if init == "normal":
                nn.init.normal_(self.key, std=0.02)
                nn.init.normal_(self.value, std=0.02)

    def start(self, key: Tensor, value: Tensor) -> None:
        """Start from these: (kv_heads, tokens, head_dim) and (kv_heads, tokens, value_dim)."""
        with torch.no_grad():
            self.key.copy_(key)
            self.value.copy_(value)

    def forward(
        self, k: Tensor, v: Tensor, key: Tensor | None = None, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        key = self.key if key is None else key
        value = self.value if value is None else value
        return self.joined(key, k), self.joined(value, v)

    @classmethod
    def banked(cls, pieces: Sequence[Self], rows: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """A prefix a row; behind a shorter one stand zeros, which a mask has to hide.

        The keys and values of a reparameterisation come for each row already.
        """
        k, v, *given = inputs
        if not given:
            given = [gathered([p.key for p in pieces], rows),
                     gathered([p.value for p in pieces], rows)]  # fmt: skip
        key, value = (pieces[0].by_heads(t) for t in given)
        return pieces[0].joined(key, k), pieces[0].joined(value, v)

    def joined(self, prefix: Tensor, x: Tensor) -> Tensor:
        """[prefix; x], the prefix repeated over heads, and over the batch where it is one for all.

        prefix: (kv_heads, tokens, dim) or (1 or batch, heads, tokens, dim).
        """
        if self.dropout is not None:
            prefix = self.dropout(prefix)
        if prefix.dim() == 3:
            prefix = self.by_heads(prefix)
        prefix = prefix.to(x.dtype)
        return torch.cat([prefix.expand(x.shape[0], -1, -1, -1), x], 2) if self.joins else prefix

    def by_heads(self, prefix: Tensor) -> Tensor:
        """(..., kv_heads, tokens, dim) as (1 or batch, heads, tokens, dim)."""
        if self.repeats > 1:
            rest = [1] * (prefix.dim() - 3)
            tiled = prefix.repeat(*rest, self.repeats, 1, 1) if self.tiled else None
            prefix = prefix.repeat_interleave(self.repeats, -3) if tiled is None else tiled
        return prefix if prefix.dim() == 4 else prefix.unsqueeze(0)

    def spread(self) -> None:
        """Keep the keys and values as `by_heads` gives them."""
        with torch.no_grad():
            self.key = nn.Parameter(self.by_heads(self.key).clone())
            self.value = nn.Parameter(self.by_heads(self.value).clone())


class Reparameterization(nn.Module):
    """Keys and values of all sites from one MLP: out(act(hidden(E))).

    E: (tokens, width), hidden: (hidden, width), out: (sum of a site's kv_heads (head_dim +
    value_dim), hidden). Gives one (kv_heads, tokens, head_dim) key and one value a site, in
    turn. Dropped by folding, which keeps what it gives. Source: Li and Liang 2021, section 4.3.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        tokens: int,
        width: int,
        hidden: int,
        act: str = "tanh",
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.embedding = nn.Parameter(torch.empty(tokens, width))
        nn.init.normal_(self.embedding)
        self.hidden = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[act]
        self.out = nn.Linear(hidden, sum(heads * dim for heads, _, dim in self.shapes))

    def start(self, *parts: Tensor) -> None:
        """Start from a key and a value a site, in turn: (kv_heads, tokens, dim), tokens <= hidden.

        The last layer is fitted, so that the MLP gives just these.
        """
        flat = torch.cat([p.transpose(0, 1).flatten(1) for p in parts], -1)
        fit(self.out, self.act(self.hidden(self.embedding)), flat)

    def forward(self) -> tuple[Tensor, ...]:
        flat = self.out(self.act(self.hidden(self.embedding)))
        parts = flat.split([heads * dim for heads, _, dim in self.shapes], dim=-1)
        return tuple(
            part.reshape(tokens, heads, dim).transpose(0, 1)
            for part, (heads, tokens, dim) in zip(parts, self.shapes, strict=True)
        )

    @classmethod
    def banked(
        cls, pieces: Sequence[Reparameterization], rows: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """The keys and values of all sites for each row, by the row's own MLP."""
        tables = [p() for p in pieces]
        return tuple(gathered(same, rows) for same in zip(*tables, strict=True))


def prefix_at(options: Any, attention: Any, *, gated: bool) -> Prefix:
    """The prefix that a spec's options describe at an attention core (`heads`, `kv_heads`, ...)."""
    return Prefix(
        options.tokens,
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
        attention.value_dim,
        own=options.reparam is None,
        joins=attention.scores is None and not gated,
        tiled=attention.tiled,
        init=options.init.kind,
        dropout=options.dropout,
    )
