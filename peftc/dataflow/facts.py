"""Facts about every node of a graph: its operation, what it depends on, and whether it projects."""

from __future__ import annotations

from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.projection import Projection, projection_at
from peftc.dataflow.relations import Relations


class Facts(Relations):
    """What the finders ask about one Program's graph."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.projections: dict[fx.Node, Projection] = {}
        for node in self.nodes:
            if (projection := projection_at(self, node)) is not None:
                self.projections[node] = projection
        self.projecting = self.mask(self.projections)

    def frontier(self, node: fx.Node, within: int = -1) -> list[Projection]:
        """The projections met first on the way back from `node`, in order, inside `within`."""
        found: dict[fx.Node, None] = {}
        seen: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            n = waiting.pop()
            if n in seen or not self.is_tensor(n) or not self.active(n):
                continue
            seen.add(n)
            if n in self.projections:
                if within >> self.index[n] & 1:
                    found[n] = None
                continue
            if self.op[n] in ("embedding", "scaled_dot_product_attention"):
                continue
            waiting += n.all_input_nodes
        return [self.projections[n] for n in sorted(found, key=self.index.__getitem__)]
