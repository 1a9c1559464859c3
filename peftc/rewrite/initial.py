"""Where pieces start from the model itself: embeddings of tokens, keys and values of real words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import map_arg

from peftc.capture.piece_name import Part, PieceName
from peftc.capture.program import Program, attribute, input_name
from peftc.capture.walk import back_to_inputs
from peftc.dataflow.site import Attention, Embedding
from peftc.ground.diagnostics import error
from peftc.methods.prompt.options import FREQUENT
from peftc.planning.fit import starts_from_model
from peftc.planning.plan import Plan
from peftc.rewrite.tokens import Words, checked, spelt


def initial_values(plan: Plan, words: Words, seed: int) -> dict[str, tuple[Tensor, ...]]:
    """What the pieces' `start` takes, by submodule path, for those that start from the model.

    The plan's program is run as it is before the rewrite. On a model without data there is
    nothing to start from, and nothing is given.

    Raises:
        PeftcError: E083 without a tokenizer, E114 for ids or texts that are not possible.
    """
    program = plan.sites.program
    if any(p.device.type == "meta" or isinstance(p, FakeTensor) for p in program.parameters()):
        return {}
    values: dict[str, tuple[Tensor, ...]] = {}
    random = torch.Generator().manual_seed(seed)
    for planned in plan.insertions:
        ident = planned.insertion.id
        for task, insertion in planned.insertion.variants(plan.tasks).items():
            if not starts_from_model(insertion):
                continue
            options = insertion.delta.options
            if insertion.delta.kind == "prompt":
                labels = plan.labels(task)
                for embedding in plan.sites.embeddings:
                    if embedding.site in planned.places:
                        rows = prompts(options, embedding, program, words, random, labels)
                        name = PieceName(ident, embedding.site.name, task=task)
                        values[str(name)] = (rows,)
                continue
            attentions = [p for p in planned.places if isinstance(p, Attention)]
            pairs = keys_and_values(options, attentions, program, words)
            if options.reparam is not None:
                name = PieceName(ident, part=Part.REPARAM, task=task)
                values[str(name)] = tuple(t for pair in pairs for t in pair)
            else:
                for attention, pair in zip(attentions, pairs, strict=True):
                    values[str(PieceName(ident, attention.name, task=task))] = pair
    return values


def start(path: str, piece: Any, values: Sequence[Tensor]) -> None:
    """Give a piece its first values.

    Raises:
        PeftcError: E114 where its network cannot give them.
    """
    try:
        piece.start(*values)
    except ValueError as cause:
        raise error("E114", f"{path}: {cause}", help=("a larger `hidden`",)) from cause


def prompts(
    options: Any,
    embedding: Embedding,
    program: Program,
    words: Words,
    random: torch.Generator,
    labels: Sequence[str],
) -> Tensor:
    """The rows that a prompt, or each member of an ensemble, starts from: (..., tokens, width)."""
    given = (options, embedding, program, words, random, labels)
    if options.ensemble is None:
        return prompt_rows(*given)
    return torch.stack([prompt_rows(*given) for _ in range(options.ensemble)])


def prompt_rows(
    options: Any,
    embedding: Embedding,
    program: Program,
    words: Words,
    random: torch.Generator,
    names: Sequence[str],
) -> Tensor:
    """The rows that a prompt starts from, (tokens, width), as the model's own module gives them."""
    config, tokens = program.signature.config, options.tokens
    start, vocabulary = options.init, attribute(program, embedding.table).shape[0]
    if start.kind in ("text", "ids"):
        return embedded(spelt(start, tokens, words, vocabulary), embedding, program)
    labels: list[Tensor] = []
    count = start.options if start.kind == "vocab" else FREQUENT
    if start.kind == "labels":
        for name in names:
            ids = words.ids(name)
            labels.append(
                embedded(checked(ids, vocabulary), embedding, program).mean(0, keepdim=True)
            )
    frequent = words.frequent(count, vocabulary, config)
    drawn = torch.randint(len(frequent), (tokens - len(labels),), generator=random)
    rest = [embedded([frequent[k]], embedding, program) for k in drawn.tolist()]
    return torch.cat([*labels, *rest])


def embedded(ids: Sequence[int], embedding: Embedding, program: Program) -> Tensor:
    """What the embedding's module gives for ids, (tokens, width): with the model's own scaling."""
    given = {str(input_name(embedding.ids)): ids}
    return evaluate(program, [embedding.site.h], given)[embedding.site.h].flatten(0, -2)


def keys_and_values(
    options: Any, attentions: Sequence[Attention], program: Program, words: Words
) -> list[tuple[Tensor, Tensor]]:
    """(P_k, P_v) of each attention: what it reads when the model reads the words alone.

    P_k: (kv_heads, tokens, head_dim), after rotary positions 0 .. tokens - 1, before heads are
    repeated. An encoder-decoder model reads the words on both sides.
    """
    signature = program.signature
    if signature.input("input_ids") is None or signature.static_length not in (
        None,
        options.tokens,
    ):
        raise error(
            "E114",
            f"{signature.model_class} cannot read {options.tokens} tokens of text to start from",
            help=("init: normal", "capture it with a free length"),
        )
    vocabulary = getattr(signature.config.get_text_config(), "vocab_size", 1 << 62)
    ids = spelt(options.init, options.tokens, words, vocabulary)
    names = [input_name(n) or "" for n in program.graph.nodes]
    given = {n: ids for n in names if n.endswith("input_ids")}
    found = evaluate(program, [n for a in attentions for n in (a.k, a.v)], given)
    return [(one_batch(a, a.k, found), one_batch(a, a.v, found)) for a in attentions]


def one_batch(attention: Attention, node: fx.Node, found: Mapping[fx.Node, Tensor]) -> Tensor:
    """Keys or values of one text as (kv_heads, tokens, dim), whatever layout they have."""
    value = found[node]
    value = value if value.dim() == 3 else value[0]  # heads may be flattened into the batch
    if not isinstance(node.meta["val"].shape[-1], int):
        value = value.transpose(-1, -2)  # a product written out reads k transposed
    every = 1 if attention.tiled else attention.heads // attention.kv_heads
    return value[::every][: attention.kv_heads].contiguous()


def evaluate(
    program: Program, nodes: Sequence[fx.Node], given: Mapping[str, Sequence[int]]
) -> dict[fx.Node, Tensor]:
    """The values of some nodes when the program reads one row of ids a stack."""
    device = next(program.parameters()).device
    needed = back_to_inputs(*nodes)
    rows = {n: torch.tensor([list(ids)], device=device) for n, ids in given.items()}
    absent = {n.name for n in needed if n.op == "placeholder"} - rows.keys()
    for i in program.signature.inputs:
        if i.name in absent:
            like = next(iter(rows.values()))
            rows[i.name] = torch.full_like(like, int(i.default == "ones"), dtype=i.dtype)
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node not in needed:
                continue
            if (given_rows := rows.get(input_name(node) or "")) is not None:
                values[node] = given_rows
                continue
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "get_attr":
                values[node] = attribute(program, str(node.target))
            elif node.op == "call_module":
                values[node] = attribute(program, str(node.target))(*args, **kwargs)
            else:
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return {n: values[n] for n in nodes}
