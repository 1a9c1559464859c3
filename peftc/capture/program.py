"""The intermediate representation: a `torch.fx.GraphModule` that is called like the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode
from torch.utils import _pytree as pytree

from peftc.capture.loss import LABELS, decoder_inputs, loss_of
from peftc.capture.piece_name import is_inserted
from peftc.capture.tasks import answer
from peftc.ground.diagnostics import PeftcError, error

SIGNATURE = "peftc.signature"  # the key of the Signature in a Program's meta
STORED = "peftc.stored"  # the key of where the frozen weights are on disk, in a Program's meta


@dataclass(frozen=True)
class Input:
    """One tensor that the graph takes.

    `dims` holds a number for a fixed axis and a name ("batch", "sequence") for a free one.
    `default` says what an absent input becomes: "ones", "zeros", or None where it is required.
    `below` is the number of values that an input of choices can have, `end` the id that stands
    at the end of every row.
    """

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...]
    default: str | None = None
    below: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Output:
    """One tensor that the graph returns, named by its place in the model's output."""

    name: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """How the graph is called and what it gives back."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    structure: pytree.TreeSpec  # of the model's own output; its leaves are `outputs` in order
    config: Any  # the model's PretrainedConfig
    loss: str | None = None  # the name transformers gives the model's loss
    model_class: str = ""
    task_parameters: frozenset[str] | None = None  # what the task added to the base model
    members: int = 1  # of an ensemble: how many rows an example has while training
    # The most tokens that free axes may have, by name: more find no row in a table of positions.
    longest: Mapping[str, int] = field(default_factory=dict)
    # The tasks of a graph that has heads of its own: each as if it were the only one.
    tasks: Mapping[str, Signature] = field(default_factory=dict)

    def input(self, name: str) -> Input | None:
        """The input called `name`, or None."""
        return next((i for i in self.inputs if i.name == name), None)

    @property
    def static_length(self) -> int | None:
        """The number of tokens the graph is made for; None where length is free."""
        ids = self.input("input_ids") or self.input("attention_mask")
        length = ids.dims[1] if ids is not None else None
        return length if isinstance(length, int) else None

    def for_task(self, name: str | None = None) -> Signature:
        """What a task looks like; without a name the only one, or the model's own.

        Raises:
            PeftcError: E106 for an unknown task, or none where there are several.
        """
        if name is not None and name in self.tasks:
            return self.tasks[name]
        if name is None and len(self.tasks) < 2:
            return next(iter(self.tasks.values()), self)
        names = ", ".join(self.tasks)
        raise error(
            "E106",
            "the graph has several tasks: say which" if name is None else f"no task `{name}`",
            help=(f"tasks: {names}" if names else "the spec has no `tasks`",),
        )

    def bind(self, given: Mapping[str, Any]) -> list[Tensor]:
        """Order keyword inputs as the graph's placeholders, absent ones filled with defaults.

        Raises:
            PeftcError: E204 for an input that the graph does not take, or one it needs; E122 for
                more tokens than the model has positions for.
        """
        names = [i.name for i in self.inputs]
        unknown = [n for n, v in given.items() if v is not None and n not in names]
        missing = [i.name for i in self.inputs if i.default is None and given.get(i.name) is None]
        if unknown or missing:
            what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
            raise error(
                "E204",
                f"the graph cannot be called with these inputs; {what}",
                help=(f"it takes: {', '.join(names)}",),
            )
        values: dict[str, Tensor] = {n: v for n, v in given.items() if v is not None}
        sizes = {d: k for i in self.inputs if i.name in values
                 for d, k in zip(i.dims, values[i.name].shape, strict=False)}  # fmt: skip
        for d, size in sizes.items():
            if size > self.longest.get(str(d), size):
                raise too_long(str(d), size, self.longest[str(d)])
        device = next(iter(values.values())).device
        for i in self.inputs:
            if i.name not in values:
                shape = [sizes[d] if isinstance(d, str) else d for d in i.dims]
                fill = int(i.default == "ones")
                values[i.name] = torch.full(shape, fill, dtype=i.dtype, device=device)
        return [values[i.name] for i in self.inputs]


class Program(fx.GraphModule):
    """A captured model: functional ATen ops, no guards, no asserts, no in-place ops.

    Placeholders are the inputs in the signature's order, the output node is a flat tuple.
    `program(input_ids=..., labels=...)` answers like the model, with a `ModelOutput`;
    `program.flat(*tensors)` is the bare graph. Frozen weights keep their `state_dict` names.
    """

    @property
    def signature(self) -> Signature:
        """The input and output signature."""
        return self.meta[SIGNATURE]

    @signature.setter
    def signature(self, value: Signature) -> None:
        self.meta[SIGNATURE] = value
        self.recompile()

    def recompile(self) -> PythonCode:
        """Regenerate the code; `flat` becomes the graph, `forward` the call like the model."""
        code = super().recompile()
        cls = type(self)
        cls.flat = cls.forward
        cls.forward = _forward_like_model
        if SIGNATURE in self.__dict__.get("meta", {}):
            cls.forward = _with_signature(self.signature)
        return code

    def flat(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the bare graph; replaced by the generated code on every recompilation."""
        raise error("E204", "the graph has not been compiled", help=("call recompile() first",))

    def clone(self, *, pieces: bool = False) -> Program:
        """A Program with a graph of its own over the same weights and submodules.

        With `pieces`, submodules (inserted pieces, dropouts) are copies.
        """
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(self.graph, values)
        output = graph.output(result)
        old = self.graph.output_node()
        output.meta.update(old.meta)
        targets = targets_of(self)
        if pieces:
            targets = {
                n: copy.deepcopy(t) if isinstance(t, nn.Module) else t for n, t in targets.items()
            }
        made = build(targets, graph, replace(self.signature))
        if STORED in self.meta:
            made.meta[STORED] = self.meta[STORED]
        return made

    def peft_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The inserted parameters, by name."""
        return ((n, p) for n, p in self.named_parameters() if is_inserted(n))


def too_long(axis: str, tokens: int, longest: int) -> PeftcError:
    """E122: more tokens than there are positions."""
    of = "the decoder's text" if axis.startswith("decoder") else "the text"
    return error(
        "E122",
        f"{of} has {tokens} tokens, and the graph has positions for {longest}",
        notes=("prompts and prefixes take positions from the text",),
        help=(f"cut it: tokenizer(..., truncation=True, max_length={longest})",),
    )


def build(targets: Mapping[str, Any], graph: fx.Graph, signature: Signature) -> Program:
    """A Program from what its get_attr and call_module nodes name, a graph and a signature."""
    program = Program(dict(targets), graph, class_name="Program")
    program.signature = signature
    program.eval()
    return program


def targets_of(program: fx.GraphModule) -> dict[str, Any]:
    """What the graph's get_attr and call_module nodes name: target -> tensor or module."""
    names = {n.target for n in program.graph.nodes if n.op in ("get_attr", "call_module")}
    return {str(name): attribute(program, str(name)) for name in sorted(map(str, names))}


def drop_unused(graph: fx.Graph) -> None:
    """Remove what nothing reads; inputs stay, read or not."""
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))


def input_name(node: fx.Node) -> str | None:
    """The name of the input that a node is, or in whose place it is computed; None for others."""
    return node.name if node.op == "placeholder" else node.meta.get("input")


def attribute(root: nn.Module, target: str) -> Any:
    """The parameter, buffer or submodule at a dotted path."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _forward_like_model(self: Program, **inputs: Any) -> Any:
    """Answer like the model: keyword inputs in, the model's output class out, loss with labels."""
    signature = self.signature
    inputs.pop("return_dict", None)
    if signature.tasks:
        return answer(self, inputs)
    labels = {n: inputs.pop(n) for n in LABELS if inputs.get(n) is not None}
    for name in LABELS:
        inputs.pop(name, None)
    if "labels" in labels and signature.input("decoder_input_ids") is not None:
        decoder_inputs(inputs, labels["labels"], signature.config)
    flat = self.flat(*signature.bind(inputs))
    output = pytree.tree_unflatten(list(flat), signature.structure)
    if labels:
        if self.training and signature.members > 1:
            labels = {n: torch.cat([t] * signature.members) for n, t in labels.items()}
        output["loss"] = loss_of(output, labels, signature)
        output.move_to_end("loss", last=False)
    return output


def _with_signature(signature: Signature) -> Any:
    """`_forward_like_model` with the model's argument names, which training loops inspect."""

    def forward(self: Program, *args: Any, **inputs: Any) -> Any:
        for i, value in zip(signature.inputs, args, strict=False):
            inputs[i.name] = value
        return _forward_like_model(self, **inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["self", *(i.name for i in signature.inputs), *_labels(signature)]
    defaults = {n: None for n in names[2:]}
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(n, kind, default=defaults.get(n, inspect.Parameter.empty))
            for n in names
        ]
    )
    return forward


def _labels(signature: Signature) -> tuple[str, ...]:
    if len(signature.tasks) == 1:
        signature = signature.for_task()
    if signature.loss is None:
        return ()
    return LABELS[1:] if signature.loss == "ForQuestionAnswering" else LABELS[:1]
