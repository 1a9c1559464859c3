"""The soft prompt in front of the input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peftc.pieces.base import Activation, Piece, fit, gathered


class Prompt(Piece):
    """h with rows `first` .. `first + tokens` replaced by the prompt: [P; h] over dummy ids.

    h: (batch, length, width) with `tokens` dummy rows already in place, P: (tokens, width).
    P is uniform in [-0.5, 0.5], N(0, 0.02^2), or given rows of the embedding table. Of an ensemble
    P is (members, tokens, width) and h (members * batch, length, width), each member's rows
    together; its gradient is that of its own loss, where the loss is the mean of the members'.
    Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".
    """

    kind: ClassVar[str] = "prompt"
    why_apart: ClassVar[str] = "its rows are no weights of the model"

    def __init__(
        self,
        tokens: int,
        width: int,
        *,
        first: int = 0,
        init: str = "uniform",
        encoder: PromptEncoder | None = None,
        members: int | None = None,
    ) -> None:
        super().__init__()
        self.first = first
        self.tokens = tokens
        self.members = members
        size = (tokens, width) if members is None else (members, tokens, width)
        self.embedding = nn.Parameter(torch.empty(size))
        if init == "normal":
            nn.init.normal_(self.embedding, std=0.02)
        else:
            nn.init.uniform_(self.embedding, -0.5, 0.5)
        self.encoder = encoder

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The prompt that a spec's options describe; `start` gives it rows of the model."""
        first = 1 if options.place == "after_first" else 0
        encoder = None
        if options.encoder is not None:
            encoder = PromptEncoder(width, options.encoder.hidden, options.encoder.kind)
        if options.reparam is not None:
            encoder = PromptEncoder(
                width, options.reparam.hidden, "reparam", act=options.reparam.act
            )
        init = options.init.kind
        return cls(
            options.tokens, width, first=first, init=init, encoder=encoder, members=options.ensemble
        )

    def start(self, rows: Tensor) -> None:
        """Start from these rows, as `rows` gives them: the last layer of an encoder is fitted."""
        if self.encoder is not None:
            self.encoder.start(self.embedding, rows)
            return
        with torch.no_grad():
            self.embedding.copy_(rows)

    def rows(self) -> Tensor:
        """The prompt itself, (tokens, width); of an ensemble all, (members, tokens, width)."""
        return self.embedding if self.encoder is None else self.encoder(self.embedding)

    def forward(self, h: Tensor) -> Tensor:
        rows = self.rows().unsqueeze(-3)
        if self.members is None:
            rows = rows.expand(h.shape[0], -1, -1)
        else:
            rows = rows.expand(-1, h.shape[0] // self.members, -1, -1)
            if self.training and rows.requires_grad:
                rows.register_hook(lambda gradient: gradient * self.members)
            rows = rows.flatten(0, 1)
        return self.put(rows, h)

    @classmethod
    def banked(cls, pieces: Sequence[Self], rows: Tensor, *inputs: Tensor) -> Tensor:
        """A prompt a row, all of one length."""
        return pieces[0].put(gathered([p.rows() for p in pieces], rows), inputs[0])

    def put(self, rows: Tensor, h: Tensor) -> Tensor:
        """H with its dummy rows replaced.  rows: (batch, tokens, width)."""
        rows = rows.to(h.dtype)
        rest = h[:, self.first + self.tokens :]
        parts = [h[:, : self.first], rows, rest] if self.first else [rows, rest]
        return torch.cat(parts, 1)


class PromptEncoder(nn.Module):
    """The network that makes a prompt while training, of three kinds.

    "mlp": three layers with ReLU, "lstm": a bidirectional LSTM and two layers (Liu et al. 2021,
    "GPT Understands, Too", section 2.2); "reparam": two layers (Li and Liang 2021, section 4.3).
    x: (tokens, width) -> (tokens, width). Dropped by folding, which keeps its output.
    """

    def __init__(self, width: int, hidden: int, kind: str = "mlp", *, act: str = "tanh") -> None:
        super().__init__()
        self.lstm = None
        if kind == "lstm":
            self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
            layers = [nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)]
        elif kind == "reparam":
            layers = [nn.Linear(width, hidden), Activation(act), nn.Linear(hidden, width)]
        else:
            layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
            layers.append(nn.Linear(hidden, width))
        self.mlp = nn.Sequential(*layers)

    def start(self, x: Tensor, rows: Tensor) -> None:
        """Fit the last layer, so that x becomes these rows: (tokens, width), tokens <= hidden."""
        fit(self.mlp[-1], self.mlp[:-1](self.mixed(x)), rows)  # type: ignore[arg-type]

    def mixed(self, x: Tensor) -> Tensor:
        """The rows, through the LSTM where there is one."""
        return x if self.lstm is None else self.lstm(x.unsqueeze(0))[0].squeeze(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.mixed(x))
