"""A weight-decomposed update  ->  linear(x, r (W + s B A)): merged into the weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, fx, nn

from peftc.capture.program import Program
from peftc.methods.dora.module import Dora
from peftc.methods.low_rank.fold import by_row, change_rows
from peftc.passes.composed import composed, made_by
from peftc.passes.folding import Pattern


class MergeDora(Pattern):
    """%h = linear(%x, %W, %b); add(%h, dora(%x, %h, %W, %b), alpha=f) -> linear(%x, %W', %b).

    W' = W + f (r (W + s B A) - W), which is r (W + s B A) for f = 1. An update is left as it is
    where anything else reads the rows of %W that it would change: its norm is of these as they are.
    """

    piece: ClassVar[type[nn.Module]] = Dora

    def merge(self, program: Program, node: fx.Node, module: Dora) -> bool:
        """Merge one update where that keeps the outputs."""
        found = composed(program, node)
        made = None if found is None or found.multiplies else made_by(found)
        if found is None or made is None or made.linear.x is not node.args[0]:
            return False
        if not made.weight_is_free(node):
            return False
        factor = found.factor

        def merged(weight: Tensor, some: slice) -> Tensor:
            whole = module.ratio(weight, some)[:, None] * module.direction(weight, some)
            if factor.dim() == 0 and factor == 1:
                return whole
            return weight + by_row(factor, weight, some) * (whole - weight)

        linear = made.linear
        change_rows(program, linear.weight, made.rows, merged, transposed=linear.transposed)
        found.replace()
        return True
