"""Low-rank updates of a graph as LoRA or DoRA tensors of PEFT."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.piece_name import is_inserted
from peftc.capture.program import Program, attribute
from peftc.interop.common import PREFIX, cannot
from peftc.interop.from_lora import number_of, pattern, unscaled
from peftc.interop.to_peft import task_type
from peftc.interop.written import Written, base_weights, options
from peftc.methods.dora.module import Dora
from peftc.methods.low_rank.module import LowRank
from peftc.passes.linears import maker_of
from peftc.rewrite.applied import Applied

aten = torch.ops.aten
WRITES = (LowRank, Dora)


@dataclass
class Update:
    """The update of one module: W + scale B A, with B's bias and the rows' magnitudes."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    m: Tensor | None
    scale: float
    table: bool = False  # of an embedding
    transposed: bool = False


def write(program: Program, applied: Applied, pieces: list[tuple[fx.Node, Any]]) -> Written:
    """One update a module; those at parts of one fused linear are stacked along the rank."""
    updates: dict[str, Update] = {}
    for node, piece in pieces:
        path, update = update_of(program, node, piece)
        updates[path] = stacked(path, updates[path], update) if path in updates else update
    dora = {u.m is not None for u in updates.values()}
    bias = {u.bias is not None for u in updates.values()}
    if len(dora) > 1 or len(bias) > 1:
        raise cannot("DoRA and biases are of all updates or of none")
    task = task_type(program, applied)
    tensors, more = base_weights(program, applied, task, PREFIX, updates)
    for path, u in updates.items():
        tensors |= named(f"{PREFIX}{path}.", u)
    ranks = {p: u.a.shape[0] for p, u in updates.items()}
    alphas = {p: number_of(u.scale * ranks[p]) for p, u in updates.items()}
    r, alpha = (Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
    more["bias"] = more.get("bias", "none")
    config = options(
        "LORA", task, r=r, lora_alpha=alpha, target_modules=sorted(updates),
        rank_pattern={f"^{p}": n for p, n in ranks.items() if n != r},
        alpha_pattern={f"^{p}": n for p, n in alphas.items() if n != alpha},
        use_dora=True in dora, lora_bias=True in bias, use_rslora=False, lora_dropout=0.0,
        fan_in_fan_out=any(u.transposed for u in updates.values()), init_lora_weights=True, **more,
    )  # fmt: skip

    def agrees(other: dict[str, Any]) -> bool:
        return all(
            number_of(scale_of(other, path)) == number_of(u.scale)
            and pattern(other.get("rank_pattern"), path, other.get("r")) == ranks[path]
            for path, u in updates.items()
        )

    return Written(config, tensors, agrees)


def scale_of(config: dict[str, Any], path: str) -> float:
    """S of a module, as a configuration says."""
    rank = pattern(config.get("rank_pattern"), path, config.get("r"))
    alpha = pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def named(prefix: str, u: Update) -> dict[str, Tensor]:
    """The tensors of one update under PEFT's names."""
    if u.table:
        return {f"{prefix}lora_embedding_A": u.a, f"{prefix}lora_embedding_B": u.b}
    result = {f"{prefix}lora_A.weight": u.a, f"{prefix}lora_B.weight": u.b}
    if u.bias is not None:
        result[f"{prefix}lora_B.bias"] = u.bias
    if u.m is not None:
        result[f"{prefix}lora_magnitude_vector"] = u.m
    return result


def update_of(program: Program, node: fx.Node, piece: LowRank) -> tuple[str, Update]:
    """The module that a piece updates, and the update of all of its outputs.

    Raises:
        PeftcError: E408 where the piece is not added to what one linear or embedding gives.
    """
    base, scale, rows = added_to(node)
    a, b, bias = piece.A.detach(), piece.B.detach(), piece.b
    bias = None if bias is None else bias.detach()
    looked_up, factor = unscaled(program, base)
    if looked_up.target is aten.embedding.default and looked_up.args[1] is node.args[0]:
        return looked_up.meta["module"], Update(a, b, bias, None, scale / factor, table=True)
    maker = maker_of(base)
    if maker is None or maker[0].x is not node.args[0]:
        raise cannot(f"{node.target} is not added to what one linear makes of the same input")
    linear, part = maker
    value = attribute(program, str(linear.weight.target)).detach()
    weight = value.T if linear.transposed else value
    rows = rows or part
    m = None
    if isinstance(piece, Dora):
        scale, m = piece.scale, torch.linalg.vector_norm(weight, dim=1)
        m[rows] = piece.m.detach().to(m.dtype)
    whole = torch.zeros(weight.shape[0], b.shape[1], dtype=b.dtype, device=b.device)
    whole[rows] = b
    if bias is not None:
        spread = torch.zeros(weight.shape[0], dtype=bias.dtype, device=bias.device)
        spread[rows] = bias
        bias = spread
    path = linear.node.meta["module"]
    return path, Update(a, whole, bias, m, scale, transposed=linear.transposed)


def added_to(node: fx.Node) -> tuple[fx.Node, float, slice | None]:
    """(the value before any update, the scale, the features of it) that a piece is added to."""
    add, rows = next(iter(node.users)), None
    if add.target is aten.constant_pad_nd.default:
        start = add.args[1][0]  # type: ignore[index]
        rows = slice(start, start + node.meta["val"].shape[-1])  # type: ignore[operator]
        add = next(iter(add.users))
    if len(node.users) != 1 or add.target is not aten.add.Tensor:
        raise cannot(f"{node.target} is not added to one value")
    base: Any = add.args[0]
    while base.target is aten.add.Tensor and is_piece(base.args[1]):
        base = base.args[0]
    return base, float(add.kwargs.get("alpha", 1.0)), rows  # type: ignore[arg-type]


def is_piece(node: Any) -> bool:
    """Whether a value is an inserted piece's, padded or not."""
    if getattr(node, "target", None) is aten.constant_pad_nd.default:
        node = node.args[0]
    return getattr(node, "op", "") == "call_module" and is_inserted(node.target)


def stacked(path: str, first: Update, second: Update) -> Update:
    """Two updates of one module as one: their ranks add up.

    Raises:
        PeftcError: E408 for DoRA, whose norms are of the sum.
    """
    if first.m is not None or second.m is not None or first.table:
        raise cannot(f"{path} has two updates, which DoRA and embeddings cannot have")
    ratio = second.scale / first.scale
    bias = None
    if first.bias is not None and second.bias is not None:
        bias = first.bias + ratio * second.bias
    return Update(
        torch.cat([first.a, second.a]),
        torch.cat([first.b, ratio * second.b], 1),
        bias,
        None,
        first.scale,
        transposed=first.transposed,
    )
