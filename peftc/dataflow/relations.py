"""Every node of a graph: its operation, and what it depends on."""

from __future__ import annotations

from typing import Any

from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.operations import BLANK, UNARY, operation


class Relations:
    """What each node is, and what it depends on. Node sets are bit masks by node order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = list(program.graph.nodes)
        self.index = {n: k for k, n in enumerate(self.nodes)}
        self.op = {n: operation(n) for n in self.nodes}
        self.ancestors: dict[fx.Node, int] = {}
        self.descendants: dict[fx.Node, int] = {}
        self._relations()
        self.inputs = self.mask(n for n in self.nodes if n.op == "placeholder")

    def _relations(self) -> None:
        """Ancestors and descendants of each node, itself included; sizes carry no data."""
        data = {
            n: [m for m in n.all_input_nodes if self.is_tensor(m) and self.op[n] not in BLANK]
            for n in self.nodes
        }
        for node in self.nodes:
            mask = 1 << self.index[node]
            for source in data[node]:
                mask |= self.ancestors[source]
            self.ancestors[node] = mask
        for node in self.nodes:
            self.descendants[node] = 1 << self.index[node]
        for node in reversed(self.nodes):
            for source in data[node]:
                self.descendants[source] |= self.descendants[node]

    @staticmethod
    def is_tensor(node: fx.Node) -> bool:
        """Whether the node gives tensors, not a size."""
        return not isinstance(node.meta.get("val"), int | float) and not hasattr(
            node.meta.get("val"), "node"
        )

    def mask(self, nodes: Any) -> int:
        """The bit mask of some nodes."""
        result = 0
        for node in nodes:
            result |= 1 << self.index[node]
        return result

    def of(self, mask: int) -> list[fx.Node]:
        """The nodes of a bit mask, in order."""
        found = []
        while mask:
            low = mask & -mask
            found.append(self.nodes[low.bit_length() - 1])
            mask ^= low
        return found

    def is_ancestor(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether b is computed from a, or is a."""
        return bool(self.ancestors[b] >> self.index[a] & 1)

    def between(self, a: fx.Node, b: fx.Node) -> int:
        """The nodes on paths from a to b, b included and a not."""
        return self.descendants[a] & self.ancestors[b] & ~(1 << self.index[a])

    def active(self, node: fx.Node) -> bool:
        """Whether the node depends on the inputs."""
        return bool(self.ancestors[node] & self.inputs)

    def strip(self, node: fx.Node) -> fx.Node:
        """The value behind unary operations."""
        while self.is_unary(node):
            node = self.active_inputs(node)[0]
        return node

    def is_unary(self, node: fx.Node) -> bool:
        """Whether a node moves, casts or scales one value."""
        return self.op[node] in UNARY and len(self.active_inputs(node)) == 1

    def active_inputs(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads and that depend on the inputs."""
        return [m for m in node.all_input_nodes if self.is_tensor(m) and self.active(m)]
