"""What all pieces share."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its approximation with a tanh."""
    return functional.gelu(x, approximate="tanh")


def identity(x: Tensor) -> Tensor:
    """The value itself."""
    return x


# Functions with names, since a graph's fingerprint tells them apart by these.
ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,
    "identity": identity,
}


class Piece(nn.Module, ABC):
    """A delta: computes what is composed with the value h at a site.

    `reads_input` says whether forward takes the value that the insertion reads; a piece without
    input (a vector) is only its parameters. `reads_weight`: forward takes (x, h, W, b) of the
    linear that makes h. `mixes_tokens`: x must be (batch, length, in). `looks_up`: at an embedding
    it takes the ids.
    """

    kind: ClassVar[str]
    reads_input: ClassVar[bool] = True
    reads_weight: ClassVar[bool] = False
    looks_up: ClassVar[bool] = False
    mixes_tokens: bool = False
    why_apart: ClassVar[str] = "it is no change of a weight"  # where it cannot be merged

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The piece that reads (..., in_width) and gives (..., width), freshly initialised."""
        raise LookupError(f"the piece `{cls.kind}` is not made from widths")

    def scale_output(self, factor: Tensor) -> bool:
        """Whether the last layer's parameters could be changed so that the delta is factor * delta.

        factor: () or (width,). False, and nothing changed, where no parameters come last.
        """
        return False

    @classmethod
    def banked(cls, pieces: Sequence[Any], rows: Tensor, *inputs: Tensor) -> Any:
        """What piece rows[b] gives for row b of the inputs.  rows: (batch,) int64."""
        raise LookupError(f"the piece `{cls.kind}` has no form for many tasks")


def scale_layer(layer: nn.Module | None, factor: Tensor) -> bool:
    """Whether the parameters of `layer` could take a factor of its output: () or (out,)."""
    if isinstance(layer, nn.Sequential):
        return scale_layer(layer[-1], factor)
    if hasattr(layer, "scale_output"):
        return layer.scale_output(factor)  # type: ignore[operator,union-attr]
    if not isinstance(layer, nn.Linear | nn.LayerNorm | RMSNorm):
        return False
    bias = getattr(layer, "bias", None)
    with torch.no_grad():
        layer.weight.mul_(factor[:, None] if factor.dim() and layer.weight.dim() > 1 else factor)
        if isinstance(bias, Tensor):
            bias.mul_(factor)
    return True


def gathered(tensors: Sequence[Tensor], rows: Tensor) -> Tensor:
    """(batch, ...): tensor rows[b] for row b; smaller ones have zeros behind, on every axis."""
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    padded = [functional.pad(t, behind(t, shape)) for t in tensors]
    return torch.stack(padded).index_select(0, rows)


def behind(tensor: Tensor, shape: Sequence[int]) -> list[int]:
    """What `pad` takes to bring a tensor to a shape, all of it at the ends of the axes."""
    missing = [want - have for have, want in zip(tensor.shape, shape, strict=True)]
    return [n for count in reversed(missing) for n in (0, count)]


def banked_linear(layers: Sequence[nn.Linear], rows: Tensor, x: Tensor) -> Tensor:
    """X W^T + b, with W and b of layer rows[b] for row b.  x: (batch, length, in)."""
    weight = gathered([layer.weight for layer in layers], rows)
    y = torch.bmm(x, weight.transpose(1, 2))
    if layers[0].bias is not None:
        y = y + gathered([layer.bias for layer in layers], rows).unsqueeze(1)
    return y


def banked_norm(layers: Sequence[nn.LayerNorm], rows: Tensor, x: Tensor) -> Tensor:
    """The LayerNorm rows[b] of row b.  x: (batch, length, width)."""
    first = layers[0]
    x = functional.layer_norm(x, first.normalized_shape, eps=first.eps)
    weight = gathered([layer.weight for layer in layers], rows).unsqueeze(1)
    return x * weight + gathered([layer.bias for layer in layers], rows).unsqueeze(1)


def linear(
    in_width: int, out_width: int, *, bias: bool = True, std: float | None = None
) -> nn.Linear:
    """Y = x W^T + b, with W ~ N(0, std^2) truncated at two sigma (zero for std 0) and b = 0.

    With `std` None, W has Kaiming-uniform values (a = sqrt 5), torch's own default.
    """
    layer = nn.Linear(in_width, out_width, bias=bias)
    if std is not None:
        if std > 0:
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Activation(nn.Module):
    """A nonlinearity by its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def fit(layer: nn.Linear, x: Tensor, y: Tensor) -> None:
    """Set W so that x W^T + b = y, the smallest such W. x: (rows, in), y: (rows, out).

    There is one where the rows of x are independent, as those of random features are where
    rows <= in; of features behind a ReLU, about half are zero.

    Raises:
        ValueError: where there is none.
    """
    with torch.no_grad():
        bias = 0 if layer.bias is None else layer.bias.double()
        weight = torch.linalg.pinv(x.double()) @ (y.double() - bias)
        layer.weight.copy_(weight.T)
        if not torch.allclose(layer(x), y, rtol=0, atol=1e-3 * float(y.abs().max())):
            raise ValueError(
                f"{len(x)} tokens cannot be fitted through these {layer.in_features} features"
            )


class RMSNorm(nn.Module):
    """y = w x / sqrt(mean(x^2) + eps).  x: (..., width); w = 1 at the start (Zhang, Sennrich 2019).

    Written out, since exporters know the plain operations better than the fused one.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def norm(kind: str, width: int) -> nn.Module:
    """A fresh normalisation over the last axis: "layer" or "rms"."""
    return RMSNorm(width) if kind == "rms" else nn.LayerNorm(width)
