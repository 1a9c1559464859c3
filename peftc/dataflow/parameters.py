"""Frozen parameters by role: norms, biases, embeddings, and the head that the task added."""

from __future__ import annotations

from torch import fx

from peftc.capture.program import attribute
from peftc.dataflow.facts import Facts
from peftc.dataflow.projection import weight_of

NORMS = frozenset({"layer_norm", "native_layer_norm", "group_norm", "batch_norm", "rms_norm"})
BIAS_ARGUMENT = {
    "linear": 2,
    "addmm": 0,
    "conv1d": 2,
    "conv2d": 2,
    "convolution": 2,
    "layer_norm": 3,
}


def parameters(facts: Facts, ends: list[fx.Node]) -> dict[str, tuple[str, ...]]:
    """{"norm": names, "bias": names, "head": names, "embed": names}, in the graph's order.

    The head is what the task added to the base model; of a model that does not tell its base, it
    is what stands behind the last of the residual streams' `ends`, norms aside.
    """
    ends = [e for e in ends if not any(e is not o and facts.is_ancestor(e, o) for o in ends)]
    roles: dict[str, list[str]] = {"norm": [], "bias": [], "head": [], "embed": []}
    task = facts.program.signature.task_parameters
    lookups = [n for n in facts.nodes if facts.op[n] == "embedding"]
    tables = {weight_of(facts, n.args[0]) for n in lookups}
    # Vocabulary logits are the pre-trained model's own, not a head that the task added.
    vocabulary = {
        n.args[0].meta["val"].shape[0]  # type: ignore[union-attr]
        for n in lookups
        if facts.strip(n.args[1]).name.endswith("input_ids")  # type: ignore[arg-type]
    }
    scaling = {n.meta.get("module") for n in facts.nodes if facts.op[n] == "rsqrt"}
    own = {n for n, _ in facts.program.named_parameters()}
    for node in facts.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        value = attribute(facts.program, name)
        if not value.is_floating_point() or name not in own:
            continue
        if is_norm(facts, node, scaling):
            roles["norm"].append(name)
        if value.dim() == 1 and is_bias(facts, node):
            roles["bias"].append(name)
        if name in tables:
            roles["embed"].append(name)
        elif task is None:
            behind = any(facts.is_ancestor(end, user) for end in ends for user in node.users)
            if behind and name not in roles["norm"] and value.shape[0] not in vocabulary:
                roles["head"].append(name)
        elif name in task and value.shape[0] not in vocabulary:
            roles["head"].append(name)
    return {role: tuple(names) for role, names in roles.items()}


def is_norm(facts: Facts, weight: fx.Node, scaling: set[str | None]) -> bool:
    """Whether a parameter scales or shifts a normalised value."""
    value = weight.meta["val"]
    if value.dim() != 1:
        return False
    for user in weight.users:
        if facts.op[user] in NORMS:
            return True
        if facts.op[user] in ("mul", "add", "_to_copy") and user.meta.get("module") in scaling:
            return True
    return False


def is_bias(facts: Facts, weight: fx.Node) -> bool:
    """Whether a vector is only ever added: a bias of a linear, a convolution or a norm."""
    for user in weight.users:
        place = BIAS_ARGUMENT.get(facts.op[user])
        if place is not None and len(user.args) > place and user.args[place] is weight:
            return True
        if facts.op[user] == "add" and any(
            isinstance(a, fx.Node) and facts.active(a) for a in user.args
        ):
            return True
    return False
