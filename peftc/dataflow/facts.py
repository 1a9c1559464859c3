"""Facts about every node of a graph: its operation, what it depends on, and whether it projects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from peftc.capture.channels import pointwise
from peftc.capture.program import Program, attribute
from peftc.dataflow.site import Lookup, Weight

# Operations that move, cast, scale or shift a value without mixing its features with another's.
UNARY = frozenset(
    [
        "dropout",
        "_to_copy",
        "clone",
        "contiguous",
        "view",
        "reshape",
        "_unsafe_view",
        "mul",
        "div",
        "add",
        "sub",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "alias",
        "detach",
        "flatten",
        "expand",
    ]
)
# Operations on the way from a weight to its use.
WEIGHT_STEPS = frozenset(
    [
        "t",
        "transpose",
        "permute",
        "_to_copy",
        "view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "expand",
        "mul",
        "div",
        "add",
        "sub",
        "index",
        "index_select",
        "contiguous",
        "clone",
        "select",
        "slice",
        "detach",
        "alias",
        "getitem",
        "unbind",
        "chunk",
        "split",
        "mT",
        "_weight_norm",
    ]
)

# New tensors in the size of another, of which they hold no data.
BLANK = frozenset(
    [
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "empty_like",
        "full_like",
        "ones_like",
        "zeros_like",
    ]
)


def operation(node: fx.Node) -> str:
    """The base name of a node's operation: "linear", "add", "getitem", "dropout", or ""."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        module = attribute(owner, str(node.target)) if owner is not None else None
        return "dropout" if isinstance(module, nn.Dropout) else "module"
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return schema.name.split("::")[1]
    return getattr(node.target, "__name__", "")


@dataclass(frozen=True)
class Projection:
    """A linear map of an activation by a frozen weight: h = x W^T + b.

    `h` and `x` are in the model's own shape, (batch, length, features), where the model flattens
    rows for the product.
    """

    node: fx.Node  # the product itself
    h: fx.Node
    x: fx.Node
    reader: fx.Node  # the node that reads x
    weight: str
    bias: str | None
    transposed: bool
    width: int
    in_width: int
    routed: bool = False  # the weight is an expert's, chosen for each token by a router

    def weight_at(self, rows: tuple[int, ...]) -> Weight:
        """The weight of a site that has these of the output features."""
        return Weight(
            self.h, self.weight, self.bias, rows, self.width, self.transposed,
            matrix=not pointwise(self.node),
        )  # fmt: skip


class Facts:
    """What the finders ask about one Program's graph. Node sets are bit masks by node order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = list(program.graph.nodes)
        self.index = {n: k for k, n in enumerate(self.nodes)}
        self.op = {n: operation(n) for n in self.nodes}
        self.ancestors: dict[fx.Node, int] = {}
        self.descendants: dict[fx.Node, int] = {}
        self._relations()
        self.inputs = self.mask(n for n in self.nodes if n.op == "placeholder")
        self.projections: dict[fx.Node, Projection] = {}
        for node in self.nodes:
            if (projection := self._projection(node)) is not None:
                self.projections[node] = projection
        self.projecting = self.mask(self.projections)

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

    def weight_of(self, node: Any) -> str | None:
        """The state_dict name of the floating parameter that `node` is a form of, or None."""
        for _ in range(12):
            if not isinstance(node, fx.Node):
                return None
            if self.op[node] in ("index", "index_select"):
                node = node.args[0]  # experts: the router's choice says which rows, not what
                continue
            if self.active(node) and not self.routed(node):
                return None
            if node.op == "get_attr":
                value = attribute(self.program, str(node.target))
                return str(node.target) if value.is_floating_point() else None
            if self.op[node] not in WEIGHT_STEPS or not node.args:
                return None
            node = node.args[0]
        return None

    def routed(self, node: Any) -> bool:
        """Whether a value is a weight whose rows a router has chosen, in another layout."""
        while (
            isinstance(node, fx.Node)
            and self.op[node] in WEIGHT_STEPS
            and node.args
            and isinstance(node.args[0], fx.Node)
        ):
            if self.op[node] in ("index", "index_select"):
                return not self.active(node.args[0]) and self.active(node)
            node = node.args[0]
        return False

    def _projection(self, node: fx.Node) -> Projection | None:
        """The projection that `node` computes, or None."""
        op, args = self.op[node], node.args
        x: Any
        bias: Any = None
        h: Any = node
        reader: Any = node
        if op == "linear":
            x, w, transposed = args[0], args[1], False
            bias = args[2] if len(args) > 2 else None
        elif op == "addmm":
            bias, x, w, transposed = args[0], args[1], args[2], True
        elif op in ("mm", "matmul", "bmm"):
            if op == "bmm" and self.weight_of(args[0]) is not None:
                return self._column_product(node)
            x, w, transposed = args[0], args[1], True
        elif pointwise(node):
            # Capture has put it between two permutations: outside them its channels stand last.
            reader, h = args[0], next(iter(node.users))
            x, w, transposed = reader.args[0], args[1], False  # type: ignore[union-attr]
            bias = args[2] if len(args) > 2 else None
        else:
            return None
        name = self.weight_of(w)
        if name is None or not isinstance(x, fx.Node) or not self.active(x):
            return None
        if op in ("addmm", "mm"):
            source, result = x, list(node.users)
            flattened = self.op[source] == "reshape" and len(result) == 1
            if flattened and self.op[result[0]] == "reshape":
                h, x, reader = result[0], source.args[0], source
        width, in_width = feature_width(h), feature_width(x)
        if width is None or in_width is None:
            return None
        return Projection(
            node,
            h,
            x,
            reader,
            name,
            self.weight_of(bias),
            transposed,
            width,
            in_width,
            routed=self.routed(w),
        )

    def _column_product(self, node: fx.Node) -> Projection | None:
        """bmm(W, x[..., None])[..., 0]: a linear of one token with the weight of its expert."""
        weight, column = node.args[:2]
        readers = list(node.users)
        if self.op[column] != "unsqueeze" or len(readers) != 1:  # type: ignore[index]
            return None
        if self.op[readers[0]] != "squeeze":
            return None
        x, h = column.args[0], readers[0]  # type: ignore[union-attr]
        name, width, in_width = self.weight_of(weight), feature_width(h), feature_width(x)  # type: ignore[arg-type]
        if name is None or width is None or in_width is None:
            return None
        return Projection(node, h, x, column, name, None, False, width, in_width, routed=True)  # type: ignore[arg-type]

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


def feature_width(node: fx.Node) -> int | None:
    """The fixed size of a value's last axis, or None."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dim() and isinstance(value.shape[-1], int):
        return value.shape[-1]
    return None


def lookup_of(node: fx.Node) -> Lookup | None:
    """The ids and the size of the table of an embedding node."""
    table, ids = node.args[0], node.args[1]
    if not isinstance(table, fx.Node) or not isinstance(ids, fx.Node):
        return None
    return Lookup(ids, table.meta["val"].shape[0])
