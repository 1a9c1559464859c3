"""attn(q, k, v)  ->  attn(q, [P_k; k], [P_v; v]): trainable keys and values in front."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from peftc.capture.piece_name import Part, PieceName, container
from peftc.capture.program import Program
from peftc.capture.values import refresh
from peftc.dataflow.site import Attention, Site
from peftc.passes.base import Pass, add_module, after, call, call_module, current, refuse
from peftc.passes.gated_attention import GatedAttention
from peftc.passes.infix import Infix
from peftc.passes.prefix_mask import PrefixMask, arguments, read_by
from peftc.passes.tasks import task_ids
from peftc.passes.written_attention import attend_beside
from peftc.pieces.bank import Bank
from peftc.pieces.gate import Valve


@dataclass
class InsertPrefix(Pass):
    """Lets every query of the given attentions see `tokens` trained keys and values.

    %o = sdpa(%q, %k, %v, %mask)
      ->  %kv = peft.<id>.<site>(%k, %v); %m = pad(%mask, [tokens, 0], keep)
          %o = sdpa(%q, %kv[0], %kv[1], %m)

    The prefix goes in as the model's own cached keys would: after rotary positions. For `cached`
    and `infix` see `PrefixMask`.
    """

    id: str
    attentions: Sequence[Attention]
    pieces: Sequence[Any | Bank]
    lengths: Sequence[int]  # one for all tasks, or one a task
    reparam: Any | Bank | None = None
    cached: bool = False
    gates: Sequence[Valve | Bank] = ()
    queries: Sequence[Site] = ()  # with gates: of each attention, which read what its gate reads
    infix: Infix | None = None

    @property
    def name(self) -> str:
        """What reports call this pass."""
        return f"insert {container(self.id)} ({len(self.attentions)} attentions)"

    def run(self, program: Program) -> None:
        """Insert the prefix at every attention, behind a gate where it has one."""
        parts = self.shared_parts(program)
        masks = PrefixMask(self.id, self.lengths, self.cached, self.infix)
        behind_gates = GatedAttention()
        for n, (attention, piece) in enumerate(zip(self.attentions, self.pieces, strict=True)):
            path, target = attention.module, str(PieceName(self.id, attention.name))
            add_module(program, target, piece)
            k, v, _ = read_by(attention)
            given = tuple(parts[2 * n : 2 * n + 2])
            rows = (task_ids(program),) if isinstance(piece, Bank) else ()
            first = attention.node if attention.scores is None else attention.scores
            while not v < first:
                v = v.all_input_nodes[0]  # what v is a view of: v itself comes behind the scores
            with program.graph.inserting_before(first):
                pair = call_module(program, target, (*rows, k, v, *given), path)
                k_new = call(program, operator.getitem, (pair, 0), path)
                v_new = call(program, operator.getitem, (pair, 1), path)
            valve = self.valve(program, n) if self.gates else None
            if attention.scores is None:
                longer = (k_new, v_new) if valve is None else (k, v)
                self.join(program, attention, *longer, masks)
                if valve is not None:
                    behind_gates.attend(program, attention, k_new, v_new, valve)
            elif self.cached:
                raise refuse(
                    f"`mask: cached` needs an attention kernel; {path} is written out",
                    code="E110",
                    help=("--attn sdpa, where the model has it", "mask: open"),
                )
            else:
                spare = masks.spare(program)
                attend_beside(program, attention, k_new, v_new, valve, self.infix, spare)
        refresh(program)

    def valve(self, program: Program, n: int) -> Callable[[fx.Node], fx.Node]:
        """What puts a value (batch, heads, length, ...) of the n-th attention behind its gate."""
        site = self.queries[n]
        name = str(PieceName(self.id, self.attentions[n].name, Part.GATE))
        if site.x is None or site.x.meta["val"].dim() != 3:
            raise refuse(f"{site.module} flattens its rows: a gate has no tokens to read")
        x = current(site.x)
        add_module(program, name, self.gates[n])
        rows = (task_ids(program),) if isinstance(self.gates[n], Bank) else ()

        def behind(value: fx.Node) -> fx.Node:
            with after(value, x):
                node = call_module(program, name, (*rows, value, x), site.module)
            if site.weight is not None:
                site.weight.node.meta.setdefault("parallel", []).append(node)
            return node

        return behind

    def join(
        self, program: Program, attention: Attention, k: fx.Node, v: fx.Node, masks: PrefixMask
    ) -> None:
        """Let the kernel read the longer keys and values, and a longer mask."""
        with program.graph.inserting_before(attention.node):
            mask = masks.longer(program, attention)
        args = arguments(attention.node)
        args[1:4] = [k, v, mask]
        if len(args) > 5:
            args[5] = False  # is_causal: the mask says it now
        kwargs = dict(attention.node.kwargs)
        kwargs.pop("attn_mask", None)
        kwargs.pop("is_causal", None)
        attention.node.args, attention.node.kwargs = tuple(args), kwargs
        attention.node.meta["stale"] = True

    def shared_parts(self, program: Program) -> list[fx.Node]:
        """The keys and values that one MLP makes for all sites: a node each, in turn."""
        if self.reparam is None:
            return []
        target = str(PieceName(self.id, part=Part.REPARAM))
        add_module(program, target, self.reparam)
        first = next(n for n in program.graph.nodes if n.op not in ("placeholder", "get_attr"))
        with program.graph.inserting_before(first):
            rows = (task_ids(program),) if isinstance(self.reparam, Bank) else ()
            table = call_module(program, target, rows, "")
            return [
                call(program, operator.getitem, (table, k), "")
                for k in range(2 * len(self.attentions))
            ]
