"""Prefixes and prompts of a graph as the one table that PEFT stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.piece_name import PieceName, piece_name
from peftc.capture.program import Program
from peftc.dataflow import find_sites
from peftc.interop.common import PROMPT_PREFIX, cannot
from peftc.interop.draft import Places
from peftc.interop.from_prefix import TABLE, counts_keys
from peftc.interop.to_peft import task_type
from peftc.interop.written import Written, base_weights, options
from peftc.methods.prefix.module import Prefix
from peftc.methods.prompt.module import Prompt
from peftc.rewrite.applied import Applied

WRITES = (Prefix, Prompt)
# Losses of models whose outputs are by token, so that the prompt's own can be cut off.
BY_TOKEN = ("ForCausalLM", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")


def write(program: Program, applied: Applied, pieces: list[tuple[fx.Node, Any]]) -> Written:
    """The table of every layer's prefix, or the rows of the prompt."""
    kinds = {type(m) for _, m in pieces}
    if len(kinds) > 1:
        raise cannot("a checkpoint is of one method, and this graph has a prefix and a prompt")
    insertions = applied.spec.insert
    places = {
        str(PieceName(i["id"], s["name"])): s
        for i in applied.plan["insertions"]
        for s in i["sites"]
    }
    task = task_type(program, applied)
    make = prefix_table if kinds == {Prefix} else prompt_rows
    kind, table, sizes = make(program, applied, pieces, places, insertions)
    tensors, more = base_weights(program, applied, task, PROMPT_PREFIX)
    tensors[TABLE] = table
    config = options(kind, task, **sizes, **more)
    return Written(config, tensors, lambda other: True)


def prefix_table(
    program: Program, applied: Applied, pieces: Any, places: Any, insertions: Any
) -> tuple[str, Tensor, dict[str, Any]]:
    """(tokens, 2 L heads dim) of all layers, as PEFT gives it to a cache.

    Raises:
        PeftcError: E408 for a part of the layers, lengths that differ, other positions or masks.
    """
    sites = find_sites(applied.base.clone())
    base = Places(sites, Path())
    for insertion in insertions:
        o = insertion.delta.options
        if o.positions != "shift":
            raise cannot("positions after a prefix always count on", "positions: shift")
        if o.before is not None:
            raise cannot(f"a prefix stands in front of all tokens, not of token {o.before}")
    stack = "decoder" if len(sites.layers) > 1 else ""
    if stack and program.signature.input("decoder_input_ids") is None:
        raise cannot(f"{program.signature.model_class} takes no cache, which a prefix would be in")
    wanted = [a for a in sites.attentions if a.role == "attn.kv" and a.stack == stack]
    by_name = {places[str(n.target)]["name"]: m for n, m in pieces}
    names = [piece_name(n.target) for n, _ in pieces]
    modes = {name.site: name.insertion for name in names if name is not None}
    if by_name.keys() != {a.name for a in wanted}:
        where = "the decoder's self-attention" if stack else "attention"
        raise cannot(f"a prefix stands at every layer of {where} and nowhere else")
    masks = {i.id: i.delta.options.mask for i in insertions}
    for a in wanted:
        if masks[modes[a.name]] == "open" and counts_keys(base, a):
            raise cannot(
                f"{a.module} has a window or relative biases, which a prefix does not escape",
                "mask: cached",
            )
    own = [(by_name[a.name].key.detach(), by_name[a.name].value.detach()) for a in wanted]
    shapes = {t.shape for pair in own for t in pair}
    if len(shapes) > 1:
        raise cannot("all layers have one number of tokens, heads and features")
    heads, tokens, dim = own[0][0].shape
    config = program.signature.config
    layers = layer_count(config) if stack else len(wanted)
    table = torch.zeros(tokens, 2 * layers, heads, dim, dtype=own[0][0].dtype)
    if applied.origin is not None:
        for key, value in applied.origin.unused.items():
            j = int(key.rpartition(".")[2])
            table[:, 2 * j : 2 * j + 2] = value
    filled: dict[int, Tensor] = {}
    for i, (key, value) in enumerate(own):
        j = 2 * i % layers if stack else i
        pair = torch.stack([key.transpose(0, 1), value.transpose(0, 1)], 1).cpu()
        if j in filled and not filled[j].equal(pair):
            raise cannot(
                f"decoder layers {[k for k in range(i + 1) if 2 * k % layers == j]} share one"
            )
        filled[j] = table[:, 2 * j : 2 * j + 2] = pair
    sizes = {
        "num_virtual_tokens": tokens, "token_dim": heads * dim, "num_attention_heads": heads,
        "num_layers": layers, "num_transformer_submodules": 2 if stack else 1,
        "encoder_hidden_size": heads * dim, "prefix_projection": False,
    }  # fmt: skip
    return "PREFIX_TUNING", table.reshape(tokens, -1), sizes


def layer_count(config: Any) -> int:
    """The number of layers that PEFT reads from a config."""
    return next(
        getattr(config, n)
        for n in ("num_hidden_layers", "num_layers", "n_layer")
        if hasattr(config, n)
    )


def prompt_rows(
    program: Program, applied: Applied, pieces: Any, places: Any, insertions: Any
) -> tuple[str, Tensor, dict[str, Any]]:
    """(tokens, width), or twice the rows in an encoder-decoder, whose second half is not used.

    Raises:
        PeftcError: E408 for several prompts, other places, or outputs read past the prompt.
    """
    signature = program.signature
    two = signature.input("decoder_input_ids") is not None
    if len(pieces) != 1 or places[str(pieces[0][0].target)]["stack"] == "decoder":
        raise cannot("one prompt stands in front of the (first) embedding")
    if places[str(pieces[0][0].target)]["stack"] and signature.loss == "ForSequenceClassification":
        raise cannot(f"{signature.model_class} takes no embeddings in the place of ids")
    if signature.input("input_ids") is None:
        raise cannot(f"{signature.model_class} reads no ids that a prompt stands in front of")
    piece: Prompt = pieces[0][1]
    trims = insertions[0].composition.options.trim
    if piece.first:
        raise cannot("a prompt stands before the first token", "place: before")
    if trims and not two and signature.loss not in BY_TOKEN:
        raise cannot(
            "poolers and heads read the prompt's first row as the first token",
            "compose: {prepend: {trim: false, padding: none}}",
        )
    rows = piece.rows().detach().cpu()
    if two:
        origin = applied.origin
        unused = origin.unused.get(TABLE) if origin is not None else None
        rows = torch.cat([rows, torch.zeros_like(rows) if unused is None else unused])
    config = signature.config.get_text_config()
    sizes = {
        "num_virtual_tokens": piece.tokens, "token_dim": rows.shape[1],
        "num_layers": layer_count(config), "num_transformer_submodules": 2 if two else 1,
        "num_attention_heads": config.num_attention_heads, "prompt_tuning_init": "RANDOM",
    }  # fmt: skip
    return "PROMPT_TUNING", rows, sizes
