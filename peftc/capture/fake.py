"""A model built without weights: its parameters are fake, its buffers hold what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

# What a checkpoint fills is made by these; what a model computes (angles, ids, masks) is not.
UNFILLED = frozenset({torch.empty, torch.empty_like, torch.rand, torch.randn, torch.normal})


class Unfilled(TorchFunctionMode):
    """Makes tensors that hold no computed numbers fake, so that they take no memory."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in UNFILLED:
            with self.mode:
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def without_weights(build: Callable[[], Any]) -> Any:
    """What `build` makes, every parameter a fake tensor on the CPU, tied ones still one.

    Capturing it gives the graph of the real model, since fake tensors have all but the numbers.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with Unfilled(mode):
        model = build()
    made: dict[int, tuple[Any, nn.Parameter]] = {}  # the first keeps the id from being used again
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or isinstance(parameter, FakeTensor):
                continue
            if id(parameter) not in made:
                value = mode.from_tensor(parameter.detach())
                made[id(parameter)] = parameter, nn.Parameter(value, requires_grad=False)
            module._parameters[name] = made[id(parameter)][1]
    return model


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers: it is neither a meta nor a fake tensor."""
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)
