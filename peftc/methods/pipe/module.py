"""A delta written step by step in the spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from peftc.pieces.base import Activation, Piece, linear, norm, scale_layer

STD = {"default": None, "normal": 1e-2, "zeros": 0.0}


class Pipe(Piece):
    """delta(x) = the steps on x, one after another.  x: (..., in) -> (..., width).

    A step's parameters are `steps.<number>...`. Zero at the start where its last linear or
    convolution is `init: zeros`. `mixes_tokens` says whether x must be (batch, length, in).
    """

    kind: ClassVar[str] = "pipe"

    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.mixes_tokens = any(isinstance(m, Conv1d) for m in self.modules())

    @classmethod
    def at(cls, options: Any, in_width: int, width: int) -> Self:
        """The pipe that a spec's steps describe.

        Raises:
            ValueError: where the steps do not end with `width` features, or do not fit together.
        """
        steps, out = built(options.steps, in_width, width)
        if out != width:
            raise ValueError(
                f"the pipe ends with {out} features, the site has {width}: "
                "end it with `linear: {out: same}`"
            )
        return cls(steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x

    def scale_output(self, factor: Tensor) -> bool:
        return scale_layer(self.steps[-1], factor)

    def fold_scales(self) -> None:
        """layer, scale  ->  layer: the factors of a scale go into the layer before it."""
        steps: list[nn.Module] = []
        for step in self.steps:
            folds = isinstance(step, Scale) and steps
            if not folds or not scale_layer(steps[-1], torch.as_tensor(step.factor).detach()):
                steps.append(step)
        self.steps = nn.ModuleList(steps)


def built(steps: Sequence[Any], width: int, site: int) -> tuple[list[nn.Module], int]:
    """The modules of a list of steps that reads `width` features, and the features it gives."""
    modules: list[nn.Module] = []
    for step in steps:
        module, width = one(step.kind, step.options, width, site)
        modules.append(module)
    return modules, width


def one(kind: str, options: Any, width: int, site: int) -> tuple[nn.Module, int]:
    """The module of one step, and the features it gives."""
    if kind == "linear":
        out = site if options.out == "same" else options.out
        return linear_of(options, width, out), out
    if kind == "conv1d":
        named: dict[Any, int] = {"same": site, None: width}
        out = named[options.out] if options.out in named else int(options.out)
        if width % options.groups or out % options.groups:
            raise ValueError(f"conv1d: {options.groups} groups do not divide {width} and {out}")
        return Conv1d(width, out, options), out
    if kind == "residual":
        inner, out = built(options, width, site)
        if out != width:
            raise ValueError(f"residual: its steps give {out} features for {width}")
        return Residual(inner), width
    if kind == "act":
        return Activation(options), width
    if kind == "norm":
        return norm(options, width), width
    if kind == "dropout":
        return nn.Dropout(options), width
    trained = not isinstance(options, int | float)
    size = width if trained and options.per == "channel" else 1
    return Scale(options.init if trained else options, size, trained=trained), width


def linear_of(options: Any, width: int, out: int) -> nn.Module:
    """A linear, or two of a rank between them."""
    std = STD[options.init]
    if options.rank is None:
        return linear(width, out, bias=options.bias, std=std)
    down = linear(width, options.rank, bias=False)
    return nn.Sequential(down, linear(options.rank, out, bias=options.bias, std=std))


class Conv1d(nn.Module):
    """Convolution along the sequence.  x: (batch, length, in) -> (batch, length, out)."""

    def __init__(self, width: int, out: int, options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, out, options.kernel, groups=options.groups, bias=options.bias)
        reach = options.kernel - 1
        self.pad = (reach, 0) if options.pad == "causal" else (reach // 2, reach // 2)
        std = STD[options.init]
        if std == 0:
            nn.init.zeros_(self.conv.weight)
        elif std is not None:
            nn.init.trunc_normal_(self.conv.weight, std=std, a=-2 * std, b=2 * std)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x.transpose(1, 2), self.pad)).transpose(1, 2)

    def scale_output(self, factor: Tensor) -> bool:
        """Factor * the convolution, by its weights: () or (out,)."""
        with torch.no_grad():
            self.conv.weight.mul_(factor.reshape(-1, 1, 1))
            if self.conv.bias is not None:
                self.conv.bias.mul_(factor)
        return True


class Scale(nn.Module):
    """x times one number, or one a feature, fixed or trained."""

    def __init__(self, init: float, size: int, *, trained: bool) -> None:
        super().__init__()
        self.factor: Any = float(init)
        if trained:
            self.factor = nn.Parameter(torch.full((size,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def scale_output(self, factor: Tensor) -> bool:
        """Factor * the scale's own: () or (width,)."""
        own = torch.as_tensor(self.factor).detach().to(factor)
        self.factor = nn.Parameter(own * factor)
        return True


class Residual(nn.Module):
    """x + steps(x)."""

    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for step in self.steps:
            y = step(y)
        return x + y
