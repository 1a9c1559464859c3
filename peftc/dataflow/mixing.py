"""Whether tokens see one another without attention: by convolution, scan or transform."""

from __future__ import annotations

from torch import fx

from peftc.dataflow.attention import PRODUCTS
from peftc.dataflow.facts import Facts
from peftc.dataflow.projection import routed

# Operations through which tokens see one another, besides products of two activations.
MIXING = frozenset(
    ["cumsum", "roll", "flip", "_fft_c2c", "_fft_r2c", "fft_fft", "fft_fftn", "tril", "while_loop"]
)


def mixes(facts: Facts, term: fx.Node, region: int) -> bool:
    """Whether tokens see one another in a branch without attention: by convolution or scan.

    A convolution behind a whole feed-forward is a step of the branch and makes no mixer of it.
    """
    inner = 0
    for down in facts.frontier(term, region):
        for up in facts.frontier(down.x, region):
            inner |= facts.between(up.node, down.node)
    for node in facts.of(inner or region):
        op = facts.op[node]
        if op in MIXING or (op in ("conv1d", "convolution") and node not in facts.projections):
            return True
        if op in PRODUCTS and node not in facts.projections:
            given = [a for a in node.args if isinstance(a, fx.Node) and facts.active(a)]
            if len(given) > 1 and not any(routed(facts, a) for a in given):
                return True
    return False
