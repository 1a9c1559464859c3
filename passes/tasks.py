"""One graph for several tasks: the input that tells rows apart, and a head for each task."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from peftc.capture.piece_name import HEADS, PieceName
from peftc.capture.program import Input, Output, Program, Signature, drop_unused
from peftc.capture.tasks import TASK_IDS
from peftc.capture.values import fake_mode
from peftc.passes.base import Keeps, Pass, add_module, call, call_module
from peftc.pieces.heads import Head
from peftc.spec.heads import HeadOptions

# By loss: the outputs of a task's model, and their class.
OUTPUTS = {
    "ForSequenceClassification": (("logits",), SequenceClassifierOutput),
    "ForTokenClassification": (("logits",), TokenClassifierOutput),
    "ForQuestionAnswering": (("start_logits", "end_logits"), QuestionAnsweringModelOutput),
}


@dataclass
class AddTaskIds(Pass):
    """inputs  ->  inputs and %task_ids, (batch,): which task each row belongs to."""

    tasks: Sequence[str]
    keeps: ClassVar[Keeps] = Keeps.NOTHING

    def run(self, program: Program) -> None:
        """Add the placeholder behind the others; left out, every row is of the first task."""
        main, *others = program.graph.find_nodes(op="placeholder")
        with program.graph.inserting_after(others[-1] if others else main):
            node = program.graph.placeholder(TASK_IDS)
        given = main.meta["val"]
        with fake_mode(program):
            value = torch.empty((given.shape[0],), dtype=torch.long, device=given.device)
        node.meta = {"val": value, "module": ""}
        added = Input(TASK_IDS, torch.long, ("batch",), "zeros", len(self.tasks))
        signature = program.signature
        program.signature = replace(signature, inputs=(*signature.inputs, added))


def task_ids(program: Program) -> fx.Node:
    """The input that `AddTaskIds` made."""
    return next(n for n in program.graph.find_nodes(op="placeholder") if n.target == TASK_IDS)


@dataclass
class AddHeads(Pass):
    """%h, %pooled  ->  logits_<task> = peft.tasks.<task>(%h or %pooled), for every task.

    The base's own outputs go. With one task the outputs are called as in a model of that task.
    """

    heads: Sequence[tuple[str, HeadOptions, str, Head]]  # task, options, the output read, module
    keeps: ClassVar[Keeps] = Keeps.NOTHING

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"add heads: {', '.join(task for task, *_ in self.heads)}"

    def run(self, program: Program) -> None:
        """Put the heads behind the base's outputs."""
        signature, output = program.signature, program.graph.output_node()
        given: tuple[fx.Node, ...] = output.args[0]  # type: ignore[assignment]
        base = {o.name: node for o, node in zip(signature.outputs, given, strict=True)}
        axes = {o.name: o.dims for o in signature.outputs}
        mask = next(
            (n for n in program.graph.find_nodes(op="placeholder") if n.target == "attention_mask"),
            None,
        )
        returned: list[fx.Node] = []
        named: dict[str, tuple[Output, ...]] = {}
        for task, options, reads, head in self.heads:
            target = str(PieceName(HEADS, task))
            add_module(program, target, head)
            pools = getattr(head, "pool", "first") != "first" and mask is not None
            with program.graph.inserting_before(output):
                args = (base[reads], mask) if pools else (base[reads],)
                node = call_module(program, target, args, "")
                parts = [node]
                if isinstance(node.meta["val"], tuple):
                    parts = [call(program, operator.getitem, (node, k), "") for k in (0, 1)]
            returned += parts
            free = axes[reads][:2] if options.loss != "ForSequenceClassification" else ("batch",)
            dims = (*free, len(options.names)) if options.names else free
            named[task] = tuple(Output(n, dims) for n in OUTPUTS[options.loss][0])
        output.args = (tuple(returned),)
        drop_unused(program.graph)
        program.signature = with_tasks(signature, self.heads, named)


def with_tasks(
    signature: Signature,
    heads: Sequence[tuple[str, HeadOptions, str, Head]],
    named: dict[str, tuple[Output, ...]],
) -> Signature:
    """The signature of the graph with heads, and in it each task's own."""
    own_inputs = tuple(i for i in signature.inputs if i.name != TASK_IDS)
    tasks: dict[str, Signature] = {}
    for task, options, *_ in heads:
        names, output_class = OUTPUTS[options.loss]
        tasks[task] = replace(
            signature,
            inputs=own_inputs,
            outputs=named[task],
            structure=pytree.tree_structure(output_class(**dict.fromkeys(names, 0))),
            config=with_labels(signature.config, options),
            loss=options.loss,
        )
    if len(tasks) == 1:
        one = next(iter(tasks.values()))
        return replace(signature, outputs=one.outputs, structure=one.structure, tasks=tasks)
    outputs = [
        replace(o, name=f"{o.name}_{task}") for task, one in tasks.items() for o in one.outputs
    ]
    structure = pytree.tree_structure({o.name: 0 for o in outputs})
    return replace(signature, outputs=tuple(outputs), structure=structure, tasks=tasks)


def with_labels(config: object, options: HeadOptions) -> object:
    """A copy of the config with the labels of a task."""
    config = copy.deepcopy(config)
    if options.names:
        config.id2label = dict(enumerate(options.names))  # type: ignore[attr-defined]
        config.label2id = {n: k for k, n in enumerate(options.names)}  # type: ignore[attr-defined]
        config.problem_type = "single_label_classification"  # type: ignore[attr-defined]
    return config
