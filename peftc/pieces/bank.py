"""A bank: the pieces of several tasks in one graph, each row of a batch through its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """f_{rows[b]}(x[b]) for every row b, as batched products over stacked and gathered tensors.

    rows: (batch,) int64, numbers of tasks; x: what the pieces read. The parameters are those of
    the pieces, `<task>.<tensor>`; a row gives gradients to its own task's alone. With `scales`,
    one a task, the result is multiplied by the row's own.
    """

    def __init__(
        self, pieces: Mapping[str, nn.Module], scales: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.tasks = tuple(pieces)
        for task, piece in pieces.items():
            self.add_module(task, piece)
        self.scale: Tensor | None
        self.register_buffer(
            "scale", torch.tensor(scales) if scales is not None else None, persistent=False
        )

    @property
    def first(self) -> Any:
        """One of the pieces, for what is the same in all."""
        return self.get_submodule(self.tasks[0])

    @property
    def reads_weight(self) -> bool:
        """As its pieces."""
        return getattr(self.first, "reads_weight", False)

    @property
    def mixes_tokens(self) -> bool:
        """As its pieces."""
        return getattr(self.first, "mixes_tokens", False)

    def of(self, task: str) -> Any:
        """One task's piece."""
        return self.get_submodule(task)

    def forward(self, rows: Tensor, *inputs: Tensor) -> Any:
        pieces = [self.of(t) for t in self.tasks]
        result = type(self.first).banked(pieces, rows, *inputs)
        if self.scale is None:
            return result
        scale = self.scale.index_select(0, rows).to(result.dtype)
        return result * scale.reshape(-1, *[1] * (result.dim() - 1))


def members(piece: nn.Module) -> list[Any]:
    """The pieces of a bank, or the one piece that is no bank."""
    return [piece.of(t) for t in piece.tasks] if isinstance(piece, Bank) else [piece]


class Lengths(nn.Module):
    """What prefixes of different lengths change for each row of a batch.

    lengths: one a task. The longest is `tokens`; what a shorter one lacks stands behind it.
    """

    lengths: Tensor

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(lengths)
        self.tokens = max(lengths)
        self.register_buffer("lengths", torch.tensor(lengths), persistent=False)

    def keep(self, rows: Tensor) -> Tensor:
        """(batch, 1, 1, tokens): which of the prefix's tokens the row's own has."""
        lengths = self.lengths.index_select(0, rows)
        places = torch.arange(self.tokens, device=rows.device)
        return (places < lengths.unsqueeze(1)).unsqueeze(1).unsqueeze(1)


class LongerMask(Lengths):
    """[keep; mask] along the keys.  mask: (..., length, keys), True or 0.0 for what is seen."""

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        while mask.dim() < 4:
            mask = mask.unsqueeze(0)
        keep = self.keep(rows)
        if mask.dtype != torch.bool:
            hidden = torch.finfo(mask.dtype).min
            keep = torch.zeros_like(keep, dtype=mask.dtype).masked_fill(~keep, hidden)
        keep = keep.expand(-1, mask.shape[1], mask.shape[2], -1)
        return torch.cat([keep, mask.expand(keep.shape[0], -1, -1, -1)], -1)


class HiddenScores(Lengths):
    """Scores of a prefix's keys, lowest where the row's own prefix has none.

    scores: (batch, heads, length, tokens).
    """

    def forward(self, rows: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(~self.keep(rows), torch.finfo(scores.dtype).min)


class ShiftedRows(Lengths):
    """positions + length of the row's own prefix.  positions: (1 or batch, length, ...)."""

    def forward(self, rows: Tensor, positions: Tensor) -> Tensor:
        lengths = self.lengths.index_select(0, rows)
        return positions + lengths.reshape(-1, *[1] * (positions.dim() - 1))
