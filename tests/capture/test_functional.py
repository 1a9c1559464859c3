"""Which exported graphs are functional as they are; that they compute the same: test_program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from peftc.capture.einsum import DECOMPOSITIONS
from peftc.capture.functional import is_functional


class Module(nn.Module):
    """A forward made of one function."""

    def __init__(self, body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def without_gradient(x: Tensor) -> Tensor:
    with torch.enable_grad():
        return x * 2


def of_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].add_(1)  # the view shows y's memory
    return y


def seen_by_a_view(x: Tensor) -> Tensor:
    y = x * 2
    first = y[:, 0]
    y.add_(1)
    return y + first[:, None]


def of_an_input_at_rest(x: Tensor) -> Tensor:
    y = x * 2
    z = nn.functional.dropout(y, training=False)
    z.add_(1)
    return y + z


def of_its_own(x: Tensor) -> Tensor:
    y = x * 2
    total = y.sum(-1, keepdim=True)
    y.div_(total)
    return y.transpose(0, 1).contiguous().to(torch.float64)


@pytest.mark.parametrize(
    ("body", "functional"),
    [
        (of_its_own, True),
        (lambda x: x.reshape(-1, 2).chunk(2, -1)[1], True),
        (lambda x: x + torch.tensor(2.0), True),
        (of_a_view, False),
        (seen_by_a_view, False),
        (of_an_input_at_rest, False),
        (without_gradient, False),
        (lambda x: torch.einsum("ij,kj->ik", x, x), False),
        (lambda x: x.flatten(), False),
    ],
)
def test_what_needs_no_second_tracing(body, functional):
    with torch.no_grad():
        exported = export(Module(body), (torch.randn(3, 6),), dynamic_shapes=({0: Dim.DYNAMIC},))
    assert is_functional(exported, DECOMPOSITIONS) is functional
