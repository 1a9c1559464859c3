"""Which stack a value belongs to: the encoder's or the decoder's, where a model has both."""

from __future__ import annotations

from torch import fx

from peftc.capture.program import input_name
from peftc.dataflow.facts import Facts


class Stacks:
    """The stacks of one model, told apart by what is computed from the decoder's inputs."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.given = [n for n in facts.nodes if (input_name(n) or "").startswith("decoder_")]
        self.decoder = facts.mask(self.given)

    def of(self, node: fx.Node) -> str:
        """The stack whose stream `node` is on: "encoder", "decoder", or "" where there is one."""
        if not self.given:
            return ""
        return "decoder" if self.facts.ancestors[node] & self.decoder else "encoder"

    def counting(self, node: fx.Node) -> str:
        """The stack whose tokens `node` counts: it may know their number and read none of them."""
        if not self.given:
            return ""
        lengths = {str(s) for n in self.given for s in n.meta["val"].shape[1:2]}
        counted = {str(s) for s in node.meta["val"].shape if not str(s).isdigit()}
        return "decoder" if counted & lengths else self.of(node)
