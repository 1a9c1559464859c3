"""What a model with insertions should give, on the plain model: hooks, embeddings, its cache."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tiny import known
from torch import Tensor
from torch.nn import functional

from peftc.capture.trace import all_configs

# A cached token has a bias by its distance or its value there, and a prefix has none; or the cache
# is of the last of several loops over the layers.
OTHER_CACHES = ("bloom", "mpt", "doge", "dory")


@dataclass(frozen=True)
class Modules:
    """Where hooks can stand.

    All by the name of a site: `downs` is the module that reads a feed-forward's activation, `ends`
    the module whose output is the site's value but for a scale, `rows` the features of a fused
    linear that belong to the site.
    """

    downs: dict[str, str]
    ends: dict[str, tuple[str, float]]
    rows: dict[str, tuple[int, ...]]


def outputs(
    method: str, model: Any, graph: Any, given: dict[str, Tensor], modules: Modules
) -> Tensor | None:
    """The expected logits, or None where the model offers no independent way."""
    if method == "prompt":
        return prompted(model, graph, given)
    if method == "prefix":
        return prefixed(model, graph, given)
    return hooked(model, graph, given, modules)


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


def randomised(spec: dict[str, Any], program: Any) -> Any:
    """The graph of a spec with random pieces, none of them zero."""
    import peftc

    graph = peftc.apply(spec, program)
    generator = torch.Generator().manual_seed(3)
    for _, p in graph.peft_parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    return graph


def hooked(model: Any, graph: Any, given: dict[str, Tensor], hints: Modules) -> Tensor | None:
    """Forward hooks on the modules that the plan names; None where a site is no whole module.

    A module that several layers share has the change of each layer in turn.
    """
    modules = dict(model.named_modules())
    before: dict[str, list[Any]] = {}
    behind: dict[str, list[Any]] = {}
    handles = []
    try:
        for site, piece in sites(graph):
            change = channels_last(change_of(piece), site["width"])
            rows = hints.rows.get(site["name"])
            if site["role"] == "ffn.act":
                name = hints.downs.get(site["name"], "")
                before.setdefault(name, []).append(change)
            elif rows is not None:
                name = site["module"]
                hook = hook_with([on_rows(change, rows)])
                handles.append(modules[name].register_forward_hook(hook))
            else:
                name, scale = hints.ends.get(site["name"], ("", 1.0))
                whole = site["role"].endswith(".out")
                if not whole and out_width(modules.get(name)) != site["width"]:
                    return None
                behind.setdefault(name, []).append(scaled(change, scale))
            if not name or name not in modules:
                return None  # the value is no module's
        for name, changes in before.items():
            handles.append(modules[name].register_forward_pre_hook(pre_hook_with(changes)))
        for name, changes in behind.items():
            handles.append(modules[name].register_forward_hook(hook_with(changes)))
        return logits(model(**given, use_cache=False))
    finally:
        for handle in handles:
            handle.remove()


def pre_hook_with(changes: list[Any]) -> Any:
    """A forward pre-hook that changes what a module reads, one change after another."""
    turn = itertools.cycle(changes)

    def hook(_module: Any, args: Any) -> Any:
        return (next(turn)(args[0], args[0]), *args[1:])

    return hook


def on_rows(change: Callable[[Tensor, Tensor], Tensor], rows: tuple[int, ...]) -> Any:
    """The change of some features of a fused linear's value."""

    def changed(x: Tensor, h: Tensor) -> Tensor:
        h = h.clone()
        h[..., list(rows)] = change(x, h[..., list(rows)])
        return h

    return changed


def scaled(change: Callable[[Tensor, Tensor], Tensor], scale: float) -> Any:
    """The change of a value that is `scale` times what a module returns."""
    return change if scale == 1 else lambda x, out: change(x, scale * out) / scale


def hook_with(changes: list[Any]) -> Any:
    """A forward hook that changes what a module returns, one change after another."""
    turn = itertools.cycle(changes)
    return lambda _module, args, out: first(out, next(turn), args)


def first(out: Any, change: Callable[[Tensor, Tensor], Tensor], args: Any) -> Any:
    """The changed output of a module, or the changed first of several."""
    x = args[0] if args else None
    if isinstance(out, tuple):
        return (change(x, out[0]), *out[1:])
    return change(x, out)


def channels_last(change: Callable[[Tensor, Tensor], Tensor], width: int) -> Any:
    """The change of a value of this width, also where a model has its channels first."""

    def changed(x: Tensor, h: Tensor) -> Tensor:
        if h.dim() != 3 or h.shape[-1] == width or h.shape[1] != width:
            return change(x, h)
        return change(x.transpose(1, 2), h.transpose(1, 2)).transpose(1, 2)

    return changed


def out_width(module: Any) -> int | None:
    """The output features of a linear or a Conv1D; None for any other module."""
    for name in ("nf", "out_features", "out_channels"):
        if hasattr(module, name):
            return getattr(module, name)
    return None


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
    """`inputs_embeds` with the prompt in front, its rows cut from the output.

    Where the model treats embeddings that it is given in another way than its own, a hook on the
    embedding module writes the prompt over dummy ids instead.
    """
    from peftc.rewrite.tokens import plain_token

    [(_, piece)] = sites(graph)
    rows = piece.embedding.detach()
    tokens, batch = rows.shape[0], given["input_ids"].shape[0]
    ones = torch.ones(batch, tokens, dtype=torch.long)
    others = {n: v for n, v in given.items() if n not in ("input_ids", "attention_mask")}
    longer = dict(others)
    if "attention_mask" in given:
        others["attention_mask"] = given["attention_mask"]
        longer["attention_mask"] = torch.cat([ones, given["attention_mask"]], 1)
    cut = 0 if "decoder_input_ids" in given else tokens
    table = model.get_input_embeddings()
    table = table[0] if isinstance(table, torch.nn.ModuleList) else table
    embedded = table(given["input_ids"])
    embedded = embedded[0] if isinstance(embedded, tuple) else embedded
    try:
        same = torch.allclose(
            logits(model(inputs_embeds=embedded.clone(), **others, use_cache=False)),
            logits(model(input_ids=given["input_ids"], **others, use_cache=False)),
        )
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
        same = False  # it asks for ids, or for embeddings that are rows of its table
    if same:
        embeds = torch.cat([rows[None].expand(batch, -1, -1), embedded], 1)
        return logits(model(inputs_embeds=embeds, **longer, use_cache=False))[:, cut:]

    def write(_module: Any, args: Any, out: Any) -> Any:
        shape = (batch, tokens + given["input_ids"].shape[1])
        h = out[0] if isinstance(out, tuple) else out
        if args[0].shape == shape:
            h = torch.cat([rows[None].expand(batch, -1, -1), h[:, tokens:]], 1)
        elif args[0].shape == shape[::-1]:  # tokens first
            h = torch.cat([rows[:, None].expand(-1, batch, -1), h[tokens:]], 0)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    # Where ids are read beside the embedding, what the dummies are is part of the meaning.
    dummy = plain_token(model.config, table.weight.shape[0])
    ids = torch.cat([ones * dummy, given["input_ids"]], 1)
    handle = table.register_forward_hook(write)
    try:
        return logits(model(input_ids=ids, **longer, use_cache=False))[:, cut:]
    finally:
        handle.remove()


def prefixed(model: Any, graph: Any, given: dict[str, Tensor]) -> Tensor | None:
    """The model's own cache filled with the prefix; decoders alone have one."""
    from transformers import DynamicCache

    if (
        "decoder_input_ids" in given
        or "input_ids" not in given
        or model.config.model_type in OTHER_CACHES
        or windowed(model.config.get_text_config(), given["input_ids"].shape[1])
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
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError):
        return None  # its own checks say that it takes no such cache
    plain = logits(model(**given, use_cache=False))
    # A model that ignores the cache it is given is no reference.
    return None if torch.allclose(found, plain) else found


def windowed(config: Any, length: int) -> bool:
    """Whether some layer sees fewer tokens than there are: a cached prefix would leave its view."""
    sizes = [known(config, n) for n in ("sliding_window", "attention_chunk_size")]
    return any(isinstance(n, int) and n < length + 8 for n in sizes)


class AttentionHook:
    """A function in transformers' own attention registry: counts calls and joins prefixes.

    `prefixes` holds a (key, value) of (kv_heads, tokens, dim) for each call, or None.
    """

    NAME = "peftc_reference"

    def __init__(self, implementation: str, prefixes: Sequence[Any] = ()) -> None:
        self.implementation = implementation
        self.prefixes = list(prefixes)
        self.shapes: list[tuple[int, int, int, int]] = []  # heads, key/value heads, widths

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any):
        """Transformers' attention function with the prefix of this call."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        given = self.prefixes[len(self.shapes)] if self.prefixes else None
        self.shapes.append((q.shape[1], k.shape[1], k.shape[-1], v.shape[-1]))
        if given is not None:
            if mask is None and getattr(module, "is_causal", False):
                mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool).tril()
            key, value = (t[None].expand(q.shape[0], -1, -1, -1) for t in given)
            k, v = torch.cat([key, k], 2), torch.cat([value, v], 2)
            if mask is not None:
                keep = True if mask.dtype == torch.bool else 0.0
                mask = functional.pad(mask, (key.shape[2], 0), value=keep)
            if options.get("position_bias") is not None:
                options["position_bias"] = functional.pad(
                    options["position_bias"], (key.shape[2], 0)
                )
        if self.implementation == "eager":
            home = sys.modules[type(module).__module__]
            return home.eager_attention_forward(module, q, k, v, mask, **options)
        forward = ALL_ATTENTION_FUNCTIONS[self.implementation]
        return forward(module, q, k, v, mask, **options)

    def run(self, model: Any, given: dict[str, Tensor]) -> Tensor:
        """The model's logits with this function as its attention."""
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(self.NAME, self)
        masks = ALL_MASK_ATTENTION_FUNCTIONS
        masks.register(self.NAME, masks[self.implementation])
        key = "_attn_implementation_internal"  # of each part: a part may have its own
        before = [(c, vars(c)[key]) for c in all_configs(model) if key in vars(c)]
        try:
            model.set_attn_implementation(self.NAME)
            return logits(model(**given, use_cache=False))
        finally:
            for config, implementation in before:
                vars(config)[key] = implementation


def attention_calls(model: Any, given: dict[str, Tensor]) -> list[tuple[int, int, int, int]]:
    """The sizes of every attention the model calls, in order; empty where it calls none."""
    hook = AttentionHook(implementation(model))
    hook.run(model, given)
    return hook.shapes


def prefixed_by_hook(
    model: Any, graph: Any, roles: Sequence[str], given: dict[str, Tensor]
) -> Tensor:
    """The prefix joined inside the model's own attention calls, positions kept."""
    own = iter((p.key.detach(), p.value.detach()) for _, p in sites(graph))
    prefixes = [next(own) if role == "attn.kv" else None for role in roles]
    return AttentionHook(implementation(model), prefixes).run(model, given)


def implementation(model: Any) -> str:
    """The attention implementation of the part that reads tokens."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return text._attn_implementation
