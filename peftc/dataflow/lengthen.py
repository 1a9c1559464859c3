"""What has to change in a graph for a stream to hold more rows than it was captured with."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx

from peftc.capture.program import attribute
from peftc.capture.walk import module_of
from peftc.dataflow.axes import RESHAPES, moved
from peftc.dataflow.facts import Facts
from peftc.dataflow.operations import UNARY
from peftc.ground.diagnostics import error

# Operations on single elements, or along an axis that is not the rows'.
ALONG = frozenset([
    "gelu", "relu", "silu", "sigmoid", "tanh", "erf", "softplus", "leaky_relu", "elu", "hardtanh",
    "clamp", "pow", "exp", "rsqrt", "sqrt", "neg", "square", "mish", "hardswish", "where",
    "masked_fill", "linear", "layer_norm", "rms_norm", "_fused_rms_norm",
])  # fmt: skip
SOFTMAX = frozenset(["softmax", "_softmax", "_safe_softmax"])
SUMS = frozenset(["mean", "var", "sum", "amax"])
PARTS = frozenset(["slice", "select", "split", "split_with_sizes", "chunk", "unbind"])
MOVES = frozenset(["getitem", "permute", "transpose", "unsqueeze", "squeeze", "expand"]) | RESHAPES


@dataclass
class Longer:
    """What holds the rows of a stream, on which axes, and what else is made for their number.

    `sizes`: (a reshape or expansion, what it reads, the rows' axis there, their axis in what it
    gives). `masks`: values that are no part of the stream, with the axes on which they have an
    entry a row, and who reads them so.
    """

    axes: dict[fx.Node, tuple[int, ...]]
    sizes: list[tuple[fx.Node, fx.Node, int, int]] = field(default_factory=list)
    masks: dict[tuple[fx.Node, tuple[int, ...]], list[fx.Node]] = field(default_factory=dict)


def lengthened(facts: Facts, h: fx.Node, end: fx.Node) -> Longer:
    """Follow the rows of h, (batch, rows, width), to the end of its stack.

    Where another stack attends to that end, they are followed through the whole graph.

    Raises:
        PeftcError: E118 where something on the way is made for the number of rows.
    """
    behind = facts.descendants[end]
    attended = any(
        facts.op[n] == "scaled_dot_product_attention"
        and behind >> facts.index[n.args[1]] & 1  # type: ignore[index]
        and not facts.is_ancestor(h, n.args[0])  # type: ignore[arg-type]
        for n in facts.of(behind)
    )
    region = facts.descendants[h] if attended else facts.between(h, end)
    found = Longer({h: (1,)})
    for node in facts.of(region & ~(1 << facts.index[h])):
        if node.op == "output" or not any(found.axes.get(n) for n in node.all_input_nodes):
            continue
        if facts.is_tensor(node):
            found.axes[node] = Step(facts, found, node, h).axes()
    return found


@dataclass
class Step:
    """One operation on values that hold the rows."""

    facts: Facts
    found: Longer
    node: fx.Node
    h: fx.Node

    def axes(self) -> tuple[int, ...]:
        """The axes of its value that hold the rows."""
        op = self.facts.op[self.node]
        if op == "scaled_dot_product_attention":
            return self.attention()
        if op in ("matmul", "bmm"):
            return self.product()
        if op in UNARY | ALONG | SOFTMAX and op not in MOVES:
            return self.along()
        source = self.node.args[0]
        if op == "cat":
            return self.joined()
        if not isinstance(source, fx.Node) or op not in MOVES | PARTS | SUMS:
            raise self.refused(f"has a step over all places (`{op}`)")
        if op in PARTS and self.cuts(source):
            raise self.refused("takes some of the places apart")
        if op == "getitem":
            return self.found.axes.get(source, ())
        made = []
        for axis in self.found.axes[source]:
            own = moved(self.facts, self.node, source, axis)
            if own is None:
                grid = op in RESHAPES
                raise self.refused(
                    "lays the places out as a grid or in windows" if grid
                    else f"makes one value of all places (`{op}`)"
                )  # fmt: skip
            if op in RESHAPES or op == "expand":
                self.found.sizes.append((self.node, source, axis, own))
            made.append(own)
        return tuple(made)

    def attention(self) -> tuple[int, ...]:
        """softmax(q k^T + mask) v: a row for each of q's, and a column in the mask for k's."""
        q, k, v = (a for a in self.node.args[:3] if isinstance(a, fx.Node))
        given = [self.found.axes.get(n, ()) for n in (q, k, v)]
        dims = self.node.meta["val"].dim()
        if given[1] != given[2] or any(a != dims - 2 for axes in given for a in axes):
            raise self.refused("attends over other axes than those of the places")
        mask = self.node.args[3] if len(self.node.args) > 3 else self.node.kwargs.get("attn_mask")
        if isinstance(mask, fx.Node):
            last = mask.meta["val"].dim() - 1
            wanted = [last - 1] * bool(given[0]) + [last] * bool(given[1])
            self.widen(mask, [a for a in wanted if a >= 0])
        return given[0]

    def product(self) -> tuple[int, ...]:
        """A b: the rows of a and the columns of b; a sum over rows needs them in both."""
        a, b = (n for n in self.node.args[:2] if isinstance(n, fx.Node))
        dims = self.node.meta["val"].dim()
        own = [self.found.axes.get(n, ()) for n in (a, b)]
        a_dims, b_dims = (n.meta["val"].dim() for n in (a, b))
        if (a_dims - 1 in own[0]) != (b_dims - 2 in own[1]):
            raise self.refused("multiplies with a value of its own for each place")
        left = {x + dims - a_dims for x in own[0] if x != a_dims - 1}
        right = {x + dims - b_dims for x in own[1] if x != b_dims - 2}
        return tuple(sorted(left | right))

    def along(self) -> tuple[int, ...]:
        """The axes of all operands, each in its place from the right."""
        op, dims = self.facts.op[self.node], self.node.meta["val"].dim()
        operands = [n for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        made = {
            axis + dims - n.meta["val"].dim()
            for n in operands for axis in self.found.axes.get(n, ())
        }  # fmt: skip
        if op in ("linear", "layer_norm", "rms_norm", "_fused_rms_norm"):
            if dims - 1 in made:
                raise self.refused("projects or normalises over the places")
            return tuple(sorted(made))
        for n in operands:
            own = n.meta["val"].dim()
            wanted = [a - dims + own for a in sorted(made) if a - dims + own >= 0]
            self.widen(n, wanted, neutral=op == "add")
        return tuple(sorted(made))

    def joined(self) -> tuple[int, ...]:
        """Values that all hold the rows, joined along another axis."""
        parts: list[fx.Node] = self.node.args[0]  # type: ignore[assignment]
        dims = self.node.meta["val"].dim()
        axis = (self.node.args[1] if len(self.node.args) > 1 else 0) % dims  # type: ignore[operator]
        own = {self.found.axes.get(n, ()) for n in parts}
        if len(own) != 1 or axis in next(iter(own)):
            raise self.refused("joins the places with others")
        return next(iter(own))

    def cuts(self, source: fx.Node) -> bool:
        """Whether a slice or a split goes through the rows."""
        op, args = self.facts.op[self.node], self.node.args
        position = 2 if op in ("split", "split_with_sizes", "chunk") else 1
        axis = args[position] if len(args) > position else 0
        return axis % source.meta["val"].dim() in self.found.axes[source]  # type: ignore[operator]

    def widen(self, value: fx.Node, axes: list[int], *, neutral: bool = True) -> None:
        """Note what has an entry a row without being made of the rows, to get entries that keep."""
        given = value.meta["val"]
        own = self.found.axes.get(value, ())
        wanted = tuple(a for a in axes if a not in own and str(given.shape[a]) != "1")
        if not wanted:
            return
        made_of = self.facts.of(self.facts.ancestors[value])
        tables = [
            n for n in made_of if n.op == "get_attr"
            and attribute(self.facts.program, str(n.target)).is_floating_point()
        ]  # fmt: skip
        if tables or not neutral:
            what = f" from `{tables[0].target}`" if tables else ""
            raise self.refused(f"has a value of its own for each place{what}")
        self.found.masks.setdefault((value, wanted), []).append(self.node)

    def refused(self, why: str) -> Exception:
        """E118."""
        rows = self.h.meta["val"].shape[1]
        number = f"{rows} " if isinstance(rows, int) else ""
        path = module_of(self.node)
        return error(
            "E118",
            f"no rows can stand beside the {number}places of the input: `{path}` {why}",
            help=("`prefix` at `attn.kv` gives attention something to see on such a model",),
        )
