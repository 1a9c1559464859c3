"""What a model with insertions should give, on the plain model: hooks, embeddings, its cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def outputs(
    method: str, model: Any, graph: Any, given: dict[str, Tensor], downs: dict[Any, str]
) -> Tensor | None:
    """The expected logits, or None where the model offers no independent way.

    `downs` names the module of the feed-forward's last linear by (stack, layer).
    """
    if method == "prompt":
        return prompted(model, graph, given)
    if method == "prefix":
        return prefixed(model, graph, given)
    return hooked(model, graph, given, downs)


def logits(output: Any) -> Tensor:
    """The logits, or whatever stands first."""
    return output["logits"] if "logits" in output else next(iter(output.values()))


def sites(graph: Any) -> list[tuple[dict[str, Any], Any]]:
    """The planned sites with their pieces."""
    planned = graph.meta["peftc.applied"].plan["insertions"]
    return [
        (site, graph.get_submodule(f"peft.{p['id']}.{site['name']}"))
        for p in planned
        for site in p["sites"]
    ]


def hooked(
    model: Any, graph: Any, given: dict[str, Tensor], downs: dict[Any, str]
) -> Tensor | None:
    """Forward hooks on the modules that the plan names; None where a site is no whole module."""
    modules = dict(model.named_modules())
    handles, used = [], set()
    try:
        for site, piece in sites(graph):
            change = change_of(piece)
            if site["role"] == "ffn.act":
                module = modules.get(downs.get((site["stack"], site["layer"]), ""))
                if module is None:
                    return None
                hook = module.register_forward_pre_hook(
                    lambda _m, args, change=change: (change(args[0], args[0]), *args[1:])
                )
            else:
                module = modules.get(site["module"])
                whole = site["role"].endswith(".out") and not hasattr(module, "out_features")
                if module is None or site["module"] in used:
                    return None  # the value is no module's, or the module is shared by layers
                if not whole and out_width(module) != site["width"]:
                    return None
                used.add(site["module"])
                hook = module.register_forward_hook(
                    lambda _m, args, out, change=change: change(args[0], out)
                )
            handles.append(hook)
        return logits(model(**given, use_cache=False))
    finally:
        for handle in handles:
            handle.remove()


def out_width(module: Any) -> int | None:
    """The output features of a linear or a Conv1D; None for any other module."""
    if hasattr(module, "nf"):
        return module.nf
    return getattr(module, "out_features", None)


def change_of(piece: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A piece's formula, from its tensors alone."""
    w = {n: p.detach() for n, p in piece.named_parameters()}
    if "A" in w:
        return lambda x, h: h + (x @ w["A"].T) @ w["B"].T
    if "l" in w:
        return lambda x, h: h * w["l"]
    return lambda x, h: (
        h + torch.relu(h @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
    )


def prompted(model: Any, graph: Any, given: dict[str, Tensor]) -> Tensor | None:
    """`inputs_embeds` with the prompt in front, its rows cut from the output."""
    [(_, piece)] = sites(graph)
    rows = piece.embedding.detach()
    tokens, batch = rows.shape[0], given["input_ids"].shape[0]
    embedded = model.get_input_embeddings()(given["input_ids"])
    ones = torch.ones(batch, tokens, dtype=torch.long)
    changed = {
        "inputs_embeds": torch.cat([rows[None].expand(batch, -1, -1), embedded], 1),
        "attention_mask": torch.cat([ones, given["attention_mask"]], 1),
    }
    if "decoder_input_ids" in given:
        return logits(
            model(**changed, decoder_input_ids=given["decoder_input_ids"], use_cache=False)
        )
    try:
        return logits(model(**changed, use_cache=False))[:, tokens:]
    except (TypeError, ValueError):
        return None


def prefixed(model: Any, graph: Any, given: dict[str, Tensor]) -> Tensor | None:
    """The model's own cache filled with the prefix; decoders alone have one."""
    from transformers import DynamicCache

    if (
        "decoder_input_ids" in given
        or not getattr(model, "_supports_default_dynamic_cache", lambda: True)()
    ):
        return None
    batch = given["input_ids"].shape[0]
    filled = [
        tuple(t.detach()[None].expand(batch, -1, -1, -1) for t in (p.key, p.value))
        for _, p in sites(graph)
    ]
    tokens = filled[0][0].shape[2]
    mask = torch.cat([torch.ones(batch, tokens, dtype=torch.long), given["attention_mask"]], 1)
    try:
        found = logits(
            model(given["input_ids"], attention_mask=mask, past_key_values=DynamicCache(filled))
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    plain = logits(model(**given, use_cache=False))
    # A model that ignores the cache it is given is no reference.
    return None if torch.allclose(found, plain) else found
