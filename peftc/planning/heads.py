"""Tasks + sites -> the head of each task: what it reads, its sizes and its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftc.capture.program import Output
from peftc.dataflow.causal import is_causal
from peftc.dataflow.site import Attention, Site, Sites
from peftc.ground.diagnostics import Diagnostic
from peftc.methods.registry import piece_class
from peftc.pieces.bank import Bank
from peftc.pieces.heads import Head, PooledHead, SpanHead
from peftc.spec import Spec
from peftc.spec.heads import HeadOptions

STATES, POOLED = "last_hidden_state", "pooler_output"


@dataclass(frozen=True)
class PlannedHead:
    """One task's head. `reads` is the output of the base that it stands on."""

    task: str
    kind: str
    options: HeadOptions
    reads: str
    pool: str | None  # how a text becomes one vector; None where every token is scored
    width: int
    parameters: int

    @property
    def source(self) -> str:
        """What the head reads, in words."""
        if self.pool in (None, "pooler"):
            return self.reads
        return "mean of the tokens" if self.pool == "mean" else f"{self.pool} token"

    def build(self) -> nn.Module:
        """A fresh head."""
        return build(self.options, self.pool, self.width)

    def to_json(self) -> dict[str, Any]:
        """The head as data."""
        return {
            "name": self.task,
            "head": self.kind,
            "labels": list(self.options.names),
            "reads": self.source,
            "parameters": self.parameters,
        }


def build(options: HeadOptions, pool: str | None, width: int) -> nn.Module:
    """The module of a head."""
    dropout: float = options.dropout  # type: ignore[attr-defined]
    if options.loss == "ForQuestionAnswering":
        return SpanHead(width, dropout)
    if pool in (None, "pooler"):
        return Head(width, len(options.names), dropout)
    return PooledHead(width, len(options.names), dropout, pool)


def plan_heads(spec: Spec, sites: Sites, problems: list[Diagnostic]) -> tuple[PlannedHead, ...]:
    """The heads of a spec's tasks on a model; what does not fit is added to `problems`."""
    if not spec.tasks:
        return ()
    found = refusal(spec, sites)
    if found is not None:
        problems.append(found)
        return ()
    outputs = {o.name: o for o in sites.program.signature.outputs}
    heads = []
    for name, task in spec.tasks.items():
        options: HeadOptions = task.head.options
        pool = pool_of(options, outputs, sites)
        if pool == "pooler" and POOLED not in outputs:
            help = ("pool: auto reads the first or the last token where there is no pooler",)
            problems.append(
                Diagnostic(
                    "E106",
                    f"task `{name}` reads a pooler; {sites.program.signature.model_class} has none",
                    spec.span("tasks", name, "head"),
                    help=help,
                )
            )
            continue
        reads = POOLED if pool == "pooler" else STATES
        width = int(outputs[reads].dims[-1])
        with torch.device("meta"):
            count = sum(p.numel() for p in build(options, pool, width).parameters())
        heads.append(PlannedHead(name, task.head.kind, options, reads, pool, width, count))
    return tuple(heads)


def check_rows(
    spec: Spec, k: int, places: Sequence[Site | Attention], sites: Sites, problems: list[Diagnostic]
) -> None:
    """Refuse pieces of each task's own where the graph does not keep the rows of a batch apart."""
    main = sites.program.graph.find_nodes(op="placeholder")[0]
    batch = str(main.meta["val"].shape[0])
    for place in places:
        if isinstance(place, Attention):
            read, axes = [place.k], 4
        else:
            read, axes = [place.h, *([place.x] if place.x is not None else [])], 3
        shapes = [n.meta["val"].shape for n in read]
        apart = all(len(s) == axes and str(s[0]) == batch for s in shapes)
        looked_up = getattr(place, "lookup", None) is not None
        low_rank = looked_up and piece_class(spec.insert[k].delta.kind).looks_up
        if low_rank or not apart:
            why = "looks rows up by ids" if low_rank else "does not keep the rows of a batch apart"
            problems.append(
                Diagnostic(
                    "E111",
                    f"`{place.module or place.name}` {why}, so no task can have its own there",
                    spec.span("insert", k, "share"),
                    help=("share: all_tasks",),
                )
            )
            return


def pool_of(options: HeadOptions, outputs: dict[str, Output], sites: Sites) -> str | None:
    """How a text becomes one vector; None where every token is scored."""
    pool = getattr(options, "pool", None)
    if pool != "auto":
        return pool
    if POOLED in outputs:
        return "pooler"
    return "last" if is_causal(sites) else "first"


def refusal(spec: Spec, sites: Sites) -> Diagnostic | None:
    """Why this model cannot have the heads of tasks, or None."""
    signature = sites.program.signature
    first = next(iter(spec.tasks))
    model, span = signature.model_class, spec.span("tasks", first)
    states = next((o for o in signature.outputs if o.name == STATES), None)
    if signature.input("decoder_input_ids") is not None:
        return Diagnostic(
            "E106",
            f"task `{first}` needs an encoder or a decoder, and this model is both",
            span,
            help=("an encoder alone can have heads, for example T5EncoderModel",),
        )
    if signature.loss is not None:
        return Diagnostic(
            "E106",
            f"task `{first}` brings a head, but {model} has one already",
            span,
            help=("load the base model: AutoModel in Python, --task feature-extraction here",),
        )
    if states is None or len(states.dims) != 3:
        return Diagnostic(
            "E106",
            f"task `{first}` needs a state for every token; {model} gives none",
            span,
            notes=(f"it gives: {', '.join(o.name for o in signature.outputs)}",),
        )
    taken = dir(Bank({}))
    for name in spec.tasks:
        if name in taken:
            return Diagnostic(
                "E013",
                f"a task cannot be called `{name}`: modules have that name already",
                spec.span("tasks", name),
            )
    return None
