"""The dropout inside attention kernels, which an eval-mode trace does not show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from peftc.capture.inputs import Example
from peftc.capture.program import Program
from peftc.capture.trace import quiet, tracing_state

SDPA = torch.ops.aten.scaled_dot_product_attention.default
DROPOUT_ARGUMENT = 4  # of sdpa(q, k, v, mask, dropout_p, ...)


class DropoutRate(nn.Module):
    """p while training, 0.0 otherwise: the dropout rate that an attention kernel is given."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self) -> float:
        """The rate now."""
        return self.p if self.training else 0.0


class Recorder(TorchFunctionMode):
    """Notes the dropout rate of every scaled_dot_product_attention call, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            given = args[DROPOUT_ARGUMENT] if len(args) > DROPOUT_ARGUMENT else 0.0
            self.rates.append(float(kwargs.get("dropout_p", given)))
        return func(*args, **kwargs)


def lift_attention_dropout(program: Program, model: Any, example: Example) -> None:
    """sdpa(q, k, v, mask)  ->  sdpa(q, k, v, mask, %rate), %rate being p in train mode only.

    The rates are those of the model's own forward in train mode on the example inputs. Where
    that run does not call the kernel as often as the graph does, the graph is left as it is.
    """
    nodes = [n for n in program.graph.nodes if n.target is SDPA]
    if not nodes:
        return
    rates = training_rates(model, example)
    if len(rates) != len(nodes):
        return
    for k, (node, rate) in enumerate(zip(nodes, rates, strict=True)):
        if rate == 0.0:
            continue
        name = f"attention_dropout_{k}"
        program.add_module(name, DropoutRate(rate).train(program.training))
        with program.graph.inserting_before(node):
            p = program.graph.call_module(name)
        p.meta = {"val": 0.0, "module": node.meta["module"]}
        args = list(node.args) + [None] * (DROPOUT_ARGUMENT - len(node.args))
        kwargs = dict(node.kwargs)
        args[3] = kwargs.pop("attn_mask", args[3])
        node.args = (*args[:DROPOUT_ARGUMENT], p, *args[DROPOUT_ARGUMENT + 1 :])
        node.kwargs = kwargs
    program.recompile()


def training_rates(model: Any, example: Example) -> list[float]:
    """The kernel's dropout rates in one train-mode forward; the model is left as it was."""
    device = next(model.parameters()).device
    values = {n: v.to(device) for n, v in example.values.items()}
    with contextlib.ExitStack() as stack:
        for state in (tracing_state(model), kept_buffers(model), quiet(), torch.no_grad()):
            stack.enter_context(state)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        seen = stack.enter_context(Recorder())
        model.train()
        # A model that cannot run in train mode on this example has told us no rates.
        with contextlib.suppress(RuntimeError, ValueError):
            model(**values)
    return seen.rates


@contextlib.contextmanager
def kept_buffers(model: Any) -> Iterator[None]:
    """Restore every buffer afterwards: running statistics move in train mode."""
    saved = [(b, b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
