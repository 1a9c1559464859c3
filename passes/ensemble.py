"""f(x)  ->  vote(f([x; x; ...])): every example once for each member of an ensemble."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from peftc.capture.piece_name import Part, PieceName, container
from peftc.capture.program import Program, Signature
from peftc.capture.values import refresh
from peftc.passes.base import Pass, add_module, after, call, call_module, current, redirect, refuse
from peftc.pieces.vote import Vote

aten = torch.ops.aten


@dataclass
class RepeatInputs(Pass):
    """%ids  ->  repeat(%ids, [members, 1]): the batch once a member, the rows of one together."""

    members: int

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"repeat inputs {self.members} times"

    def run(self, program: Program) -> None:
        """Let everything read the repeated inputs."""
        holders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        last = list(holders.values())[-1]
        for i in program.signature.inputs:
            if i.dims[0] != "batch":
                continue
            node = holders[i.name]
            readers = tuple(node.users)
            times = [self.members] + [1] * (len(i.dims) - 1)
            with after(last):
                repeated = call(program, aten.repeat.default, (current(node), times), "")
            redirect(node, repeated, readers)
            for reader in readers:
                reader.meta["stale"] = True
        refresh(program)
        program.signature = replace(program.signature, members=self.members)


@dataclass
class Combine(Pass):
    """%out  ->  vote(%out): what the members say together; hidden states become their mean."""

    id: str
    members: int
    vote: str

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"combine {container(self.id)}"

    def run(self, program: Program) -> None:
        """Combine every output."""
        output = program.graph.output_node()
        returned: list[Any] = list(output.args[0])  # type: ignore[arg-type]
        for k, described in enumerate(program.signature.outputs):
            if "batch" not in described.dims:
                continue
            if described.dims[0] != "batch":
                raise refuse(
                    f"an ensemble cannot vote: {described.name} has no row for each example"
                )
            kind = self.vote if is_logits(described.name) else "mean"
            target = str(PieceName(self.id, part=Part(kind)))
            if target not in dict(program.named_modules()):
                add_module(program, target, Vote(self.members, kind))
            with after(returned[k]):
                returned[k] = call_module(program, target, (returned[k],), "")
        output.args = (tuple(returned),)


def is_logits(name: str) -> bool:
    """Whether an output scores classes on its last axis."""
    return name.endswith("logits")


def cannot_vote(options: Any, signature: Signature) -> str | None:
    """Why the members of an ensemble have no majority on this model, or None."""
    if getattr(options, "vote", None) != "majority":
        return None
    scores = [o for o in signature.outputs if is_logits(o.name)]
    if not scores:
        return f"{signature.model_class} scores no classes that could be voted on"
    if any(o.dims[-1] == 1 for o in scores):
        return "a regression has one number, so there is no majority"
    if getattr(signature.config, "problem_type", None) == "multi_label_classification":
        return "several labels may hold at once, so there is no majority of one"
    return None
