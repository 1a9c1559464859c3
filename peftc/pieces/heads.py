"""The heads of tasks: what is computed from the model's last states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftc.pieces.base import linear

STD = 0.02  # as transformers draws the heads of its models


class Head(nn.Module):
    """linear(dropout(h)).  h: (..., width) -> (..., labels); W ~ N(0, 0.02^2) truncated, b = 0.

    A linear layer on dropout is what BERT (Devlin et al. 2019) and P-Tuning v2 (Liu et al. 2022)
    use for labels of tokens and of texts.
    """

    def __init__(self, width: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.linear = linear(width, labels, std=STD)

    def forward(self, h: Tensor) -> Any:
        return self.linear(h if self.dropout is None else self.dropout(h))


class PooledHead(Head):
    """linear(dropout(h of one token, or the mean of the real ones)) -> (batch, labels).

    h: (batch, length, width), mask: (batch, length), 1 for real tokens. pool: "first", "last"
    (the last real token, on whichever side the padding is) or "mean".
    """

    def __init__(self, width: int, labels: int, dropout: float, pool: str) -> None:
        super().__init__(width, labels, dropout)
        self.pool = pool

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.pool == "first":
            return super().forward(h[:, 0])
        if mask is None:
            return super().forward(h[:, -1] if self.pool == "last" else h.mean(1))
        if self.pool == "last":
            places = torch.arange(mask.shape[1], device=mask.device)
            last = (places * (mask != 0)).argmax(-1)
            picked = last.reshape(-1, 1, 1).expand(-1, 1, h.shape[2])
            return super().forward(h.gather(1, picked).squeeze(1))
        weight = (mask != 0).to(h.dtype).unsqueeze(-1)
        return super().forward((h * weight).sum(1) / weight.sum(1).clamp(min=1))


class SpanHead(Head):
    """(start, end): two scores for every token.  h: (batch, length, width) -> (batch, length)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, 2, dropout)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        start, end = super().forward(h).split(1, -1)
        return start.squeeze(-1), end.squeeze(-1)
