"""What a flat graph takes and gives, read off torch.export's record and the model."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from transformers import MODEL_MAPPING

from peftc.capture.inputs import Example
from peftc.capture.program import Output, Signature
from peftc.capture.trace import frozen_config
from peftc.ground.diagnostics import error


def signature_of(
    exported: ExportedProgram, model: Any, example: Example, returned: list[fx.Node]
) -> Signature:
    """The signature of the flat graph, its outputs named by their place in the model's output."""
    structure = exported.call_spec.out_spec
    if structure is None:
        raise error("E201", f"{type(model).__name__} returns nothing that torch.export records")
    leaves = pytree.tree_unflatten(list(range(len(returned))), structure)
    paths, _ = pytree.tree_flatten_with_path(leaves)
    symbols = axis_names(exported, example)
    outputs = tuple(
        Output(
            ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)
            or "output",
            dims_of(node, symbols),
        )
        for (path, _), node in zip(paths, returned, strict=True)
    )
    return Signature(
        inputs=example.inputs,
        outputs=outputs,
        structure=structure,
        config=frozen_config(model),
        loss=loss_name(model, outputs),
        model_class=type(model).__name__,
        task_parameters=task_parameters(model),
    )


def loss_name(model: Any, outputs: tuple[Output, ...]) -> str | None:
    """The loss transformers computes for this model; its default is the causal one."""
    if not any(o.name.endswith("logits") for o in outputs):
        return None
    return getattr(model, "loss_type", None) or "ForCausalLM"


def task_parameters(model: Any) -> frozenset[str] | None:
    """Names of the parameters that the task added: the head's; None where the base is unknown."""
    base = getattr(model, "base_model", model)
    if type(model) is MODEL_MAPPING.get(type(model.config), None):
        return frozenset()  # the base model itself
    if base is model:
        return None
    inside = {id(p) for p in base.parameters()}
    return frozenset(n for n, p in model.named_parameters() if id(p) not in inside)


def axis_names(exported: ExportedProgram, example: Example) -> dict[str, str]:
    """The tracer's symbols by the names of the input axes: {"s77": "batch", ...}."""
    nodes = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    return {
        str(size): dim
        for i in example.inputs
        for size, dim in zip(nodes[i.name].meta["val"].shape, i.dims, strict=True)
        if isinstance(dim, str)
    }


def dims_of(node: fx.Node, symbols: dict[str, str]) -> tuple[int | str, ...]:
    """The shape of a node's value, free axes by name."""
    shape = node.meta["val"].shape
    return tuple(d if isinstance(d, int) else symbols.get(str(d), str(d)) for d in shape)
