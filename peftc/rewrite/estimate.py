"""What a plan is going to take, and what its export keeps: known before the work begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftc.rewrite.merging import Outcome

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
RUNTIME = 450_000_000  # Python, torch and transformers themselves
BATCH, LENGTH = 16, 128
SMALL = 4_000_000  # lock, listing, picture
# Operations whose output is another view of their input: nothing is kept for them.
VIEWS = ("view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze",
         "squeeze", "alias", "detach", "split", "getitem")  # fmt: skip


def needs(plan: Any) -> dict[str, int]:
    """RAM and disk of `apply`, and the memory of a training step at `BATCH` x `LENGTH`."""
    program = plan.sites.program
    width = WIDTHS.get(str(next(program.parameters()).dtype).removeprefix("torch."), 4)
    base, trained = plan.base * width, plan.trainable * width
    # AdamW's two moments, which half precision has in float32, with a copy of the parameter.
    state = 2 * trained if width > 2 else 3 * 4 * plan.trainable
    return {
        "ram": RUNTIME + base + plan.inserted * width,
        "disk": trained + SMALL,
        "training": base + plan.inserted * width + trained + state + activations(plan),
    }


def activations(plan: Any, batch: int = BATCH, length: int = LENGTH) -> int:
    """Bytes of the values behind the first insertion, which a backward pass keeps."""
    from torch import Tensor

    program = plan.sites.program
    trained = {
        n for p in plan.insertions for place in p.places for n in (getattr(place, "h", None),
        getattr(place, "k", None)) if n is not None
    }  # fmt: skip
    trained |= {n for n in program.graph.nodes if n.op == "get_attr" and n.target in plan.unfrozen}
    sizes = symbols(program, {"batch": batch})
    reached, total = set(trained), 0
    for node in program.graph.nodes:
        if node not in reached and not any(i in reached for i in node.all_input_nodes):
            continue
        reached.add(node)
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        value = node.meta.get("val")
        if node.op in ("output", "get_attr") or name in VIEWS or not isinstance(value, Tensor):
            continue
        shape = [known(d, sizes, length) for d in value.shape]
        total += math.prod(shape) * value.element_size()
    return total


def symbols(program: Any, fixed: Mapping[str, int]) -> dict[str, int]:
    """The tracer's symbols that stand for an axis whose size is `fixed`."""
    found = {}
    holders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    for given in program.signature.inputs:
        for dim, value in zip(given.dims, holders[given.name].meta["val"].shape, strict=True):
            if dim in fixed:
                found[str(value)] = fixed[str(dim)]
    return found


def known(dim: Any, sizes: Mapping[str, int], other: int) -> int:
    """A size with numbers for its symbols: those of `sizes`, and `other` for any else."""
    if isinstance(dim, int):
        return dim
    expression = dim.node.expr
    values = {s: sizes.get(str(s), other) for s in expression.free_symbols}
    return max(1, int(expression.subs(values)))


def after_fold(plan: Any, outcomes: Sequence[Outcome]) -> list[str]:
    """What an export keeps of the insertions that fold, in words: one entry an insertion."""
    lines = []
    for p, o in matched(plan, outcomes):
        if o.merged:
            lines.append(f"{o.id} merged (-{short(p.parameters)})")
        elif o.left < o.sites:
            lines.append(f"{o.id} merged at {o.sites - o.left} of {o.sites} sites")
        elif o.kept < o.numbers:
            kind, dropped = p.insertion.delta.kind, short(o.numbers - o.kept)
            lines.append(f"{o.kept:,} {kind} values kept, {network(p)} dropped (-{dropped})")
    return lines


def dropped_networks(plan: Any, outcomes: Sequence[Outcome]) -> list[str]:
    """The parameters that an export does not have, since what they compute is stored instead."""
    return [
        f"{short(o.numbers - o.kept)} of the new parameters are the {network(p)} of `{o.id}`; "
        "it is folded away on export"
        for p, o in matched(plan, outcomes)
        if o.left == o.sites and o.kept < o.numbers
    ]


def matched(plan: Any, outcomes: Sequence[Outcome]) -> list[tuple[Any, Outcome]]:
    """Each insertion of a plan, with what folding will make of it."""
    found = {o.id: o for o in outcomes}
    return [(p, found[p.insertion.id]) for p in plan.insertions if p.insertion.id in found]


def network(planned: Any) -> str:
    """What makes a prefix or a prompt while training."""
    return "encoder" if getattr(planned.insertion.delta.options, "encoder", None) else "MLP"


def short(count: int) -> str:
    """A count for people: "14.8M", "9.2k", "512"."""
    for unit, step in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= step:
            return f"{count / step:.1f}{unit}"
    return str(count)
