"""A prefix's MLP and a prompt's encoder  ->  the tensors they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from peftc.capture.program import Program, attribute
from peftc.methods.prefix.module import Reparameterization
from peftc.methods.prompt.module import Prompt
from peftc.passes.base import Keeps, Pass, pieces
from peftc.pieces.bank import members


@dataclass
class FoldReparam(Pass):
    """Keeps the keys and values, or the prompt rows, and drops the network that made them.

    %r = reparam(); %kv = prefix(%k, %v, %r[0], %r[1])  ->  %kv = prefix(%k, %v)
    """

    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    def run(self, program: Program) -> None:
        """Evaluate each network once and store what it gives in the pieces."""
        for node, network in pieces(program, nn.Module):
            networks = members(network)
            if not isinstance(networks[0], Reparameterization):
                continue
            with torch.no_grad():
                tables = [one() for one in networks]
            for item in list(node.users):
                for reader in list(item.users):
                    name = "key" if item is reader.args[-2] else "value"
                    prefixes = members(attribute(program, str(reader.target)))
                    for prefix, table in zip(prefixes, tables, strict=True):
                        value = table[item.args[1]].contiguous().clone()  # type: ignore[index]
                        setattr(prefix, name, nn.Parameter(value))
            for item in list(node.users):
                for reader in list(item.users):
                    reader.args = tuple(a for a in reader.args if a is not item)
                program.graph.erase_node(item)
            program.graph.erase_node(node)
        prompts = [m for _, piece in pieces(program, nn.Module) for m in members(piece)]
        for prompt in prompts:
            if isinstance(prompt, Prompt) and prompt.encoder is not None:
                prompt.embedding = nn.Parameter(prompt.rows().detach().clone())
                prompt.encoder = None
        program.delete_all_unused_submodules()
