"""What the members of an ensemble say together."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Vote(nn.Module):
    """(members * batch, ...)  ->  (batch, ...), the rows of one member standing together.

    "mean": the mean over the members. "majority", over the classes of the last axis:
    log((votes + p) / (members + 1)), with one vote a member and p the mean of the members'
    softmaxes. These are log-probabilities, the class with most votes comes first, and p decides
    between classes with as many. While training nothing is combined, so that the loss is the mean
    of the members' losses. Source: Lester et al. 2021, section 6.
    """

    def __init__(self, members: int, kind: str) -> None:
        super().__init__()
        self.members = members
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x
        x = x.reshape(self.members, -1, *x.shape[1:])
        if self.kind == "mean":
            return x.mean(0)
        p = x.softmax(-1)
        votes = torch.zeros_like(p).scatter(-1, x.argmax(-1, keepdim=True), 1.0)
        return ((votes.sum(0) + p.mean(0)) / (self.members + 1)).log()
