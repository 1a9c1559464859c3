"""Attention cores: where queries meet keys, as one kernel or as a softmax written out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from peftc.dataflow.facts import Facts

PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})
# Operations between q k^T and the softmax, and between the softmax and the product with v.
SCORE_STEPS = frozenset(
    [
        "mul",
        "div",
        "add",
        "sub",
        "masked_fill",
        "where",
        "_to_copy",
        "dropout",
        "clamp",
        "tanh",
        "view",
        "reshape",
        "cat",
        "minimum",
        "maximum",
        "max",
        "clone",
        "contiguous",
        "transpose",
        "permute",
        "slice",
        "expand",
        "unsqueeze",
        "squeeze",
        "nan_to_num",
        "index_put",
        "getitem",
        "split",
        "split_with_sizes",
    ]
)


@dataclass(frozen=True)
class Core:
    """softmax(q k^T) v. `out` is the node that gives it; `scores` is None for a kernel."""

    node: fx.Node
    q: fx.Node
    k: fx.Node
    v: fx.Node
    mask: fx.Node | None
    out: fx.Node
    scores: fx.Node | None = None


def cores(facts: Facts) -> list[Core]:
    """Every attention core in the graph's order."""
    found = []
    for node in facts.nodes:
        if facts.op[node] == "scaled_dot_product_attention":
            q, k, v = node.args[:3]
            mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
            found.append(Core(node, q, k, v, mask, node))  # type: ignore[arg-type]
        elif facts.op[node] in ("softmax", "_softmax", "_safe_softmax"):
            core = written_out(facts, node)
            if core is not None:
                found.append(core)
    return found


def written_out(facts: Facts, softmax: fx.Node) -> Core | None:
    """The core around a softmax: a product of activations before and one after it."""
    scores = [m for m in back(facts, softmax) if len(operands(facts, m)) == 2]
    scores = [m for m in scores if all(facts.frontier(o) for o in operands(facts, m))]
    after = forward(facts, softmax)
    if not scores or after is None:
        return None
    first = min(scores, key=facts.index.__getitem__)
    q, k = operands(facts, first)
    given = operands(facts, after)
    if len(given) != 2:
        return None
    v = given[1] if facts.is_ancestor(softmax, given[0]) else given[0]
    return Core(softmax, q, k, v, None, after, first)


def operands(facts: Facts, node: fx.Node) -> list[fx.Node]:
    """The two factors of a product of activations."""
    if facts.op[node] not in PRODUCTS or node in facts.projections:
        return []
    args = node.args[1:3] if facts.op[node] == "baddbmm" else node.args[:2]
    return [a for a in args if isinstance(a, fx.Node) and facts.active(a)]


def back(facts: Facts, softmax: fx.Node) -> list[fx.Node]:
    """Products reached from the softmax's input through elementwise steps."""
    seen: set[fx.Node] = set()
    waiting, found = list(softmax.all_input_nodes), []
    while waiting:
        node = waiting.pop()
        if node in seen or not facts.is_tensor(node):
            continue
        seen.add(node)
        if facts.op[node] in PRODUCTS and node not in facts.projections:
            found.append(node)
        elif facts.op[node] in SCORE_STEPS:
            waiting += node.all_input_nodes
    return found


def forward(facts: Facts, softmax: fx.Node) -> fx.Node | None:
    """The product that reads the probabilities."""
    seen: set[fx.Node] = set()
    waiting = list(softmax.users)
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if facts.op[node] in PRODUCTS:
            return node
        if facts.op[node] in SCORE_STEPS:
            waiting += node.users
    return None
