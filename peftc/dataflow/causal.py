"""Whether tokens see only earlier ones."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from peftc.dataflow.site import Sites

aten = torch.ops.aten
ORDER = {aten.le.Tensor, aten.lt.Tensor, aten.ge.Tensor, aten.gt.Tensor}
TRIANGLES = {aten.tril.default, aten.triu.default}


def is_causal(sites: Sites) -> bool:
    """Whether the first self-attention compares the places of queries and keys, or the kernel does.

    A mask of padding, or of a window on both sides, compares places with numbers only.
    """
    own = next((a for a in sites.attentions if a.role == "attn.kv"), None)
    if own is None:
        return False
    flag = own.node.args[5] if len(own.node.args) > 5 else own.node.kwargs.get("is_causal")
    if own.scores is None and flag is True:
        return True
    seen: set[fx.Node] = set()
    waiting = [own.node if own.mask is None else own.mask]
    while waiting:
        n = waiting.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.target in TRIANGLES or (n.target in ORDER and all(map(by_place, n.args))):
            return True
        waiting += n.all_input_nodes
    return False


def by_place(value: object) -> bool:
    """Whether an argument has a value for each of several places."""
    if not isinstance(value, fx.Node):
        return False
    found = value.meta.get("val")
    return isinstance(found, Tensor) and any(str(d) != "1" for d in found.shape)
