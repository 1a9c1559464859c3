"""How many tokens a stack can read before a table of positions ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from peftc.capture.fake import has_numbers
from peftc.capture.program import Program, attribute, input_name
from peftc.capture.walk import back_to_inputs
from peftc.dataflow.site import Position, Sites

SHORT = 2  # tokens of the text that positions are read off


def most_tokens(sites: Sites) -> dict[str, int]:
    """By stack, the longest text without padding; nothing for stacks that compute positions."""
    found: dict[str, int] = {}
    stacks = {e.site.stack for e in sites.embeddings}
    for position in sites.positions:
        if position.limit is not None and position.stack in stacks:
            most = position.limit - offset(sites.program, position)
            found[position.stack] = min(most, found.get(position.stack, most))
    return found


def offset(program: Program, position: Position) -> int:
    """The position of the first token: 0, or more where a table begins with rows for padding.

    Read off the graph's own positions of a short text. Where they cannot be computed alone, as
    from a buffer without numbers, it is 0.
    """
    length = program.signature.static_length or SHORT
    values: dict[fx.Node, Any] = {}
    for node in sorted(back_to_inputs(position.positions)):
        if (name := input_name(node)) is not None:
            if node.meta["val"].dim() != 2:
                return 0
            values[node] = row(program, name, length)
        elif node.op == "get_attr":
            value = attribute(program, str(node.target))
            if not isinstance(value, Tensor) or not has_numbers(value):
                return 0
            values[node] = value.cpu()
        elif node.op == "call_function":
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": "cpu"}
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        else:
            return 0
    last = values[position.positions]
    return max(0, int(last.max()) + 1 - length) if isinstance(last, Tensor) else 0


def row(program: Program, name: str, length: int) -> Tensor:
    """One row of an input: ids of which none is padding, a mask of ones, types of zeros."""
    i = program.signature.input(name)
    if i is not None and i.default is not None:
        return torch.full((1, length), int(i.default == "ones"), dtype=i.dtype)
    padding = getattr(program.signature.config, "pad_token_id", None)
    return torch.full((1, length), 1 if padding == 0 else 0, dtype=torch.long)
