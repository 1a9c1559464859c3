"""Independent references on the plain model: forward hooks, inputs_embeds, past_key_values.

This is where tests may know the module names of the four families; the compiler does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# role -> the module whose output is the value h at that site, per layer {i} and stack.
OUTPUTS = {
    "bert": {
        "attn.q": "encoder.layer.{i}.attention.self.query",
        "attn.k": "encoder.layer.{i}.attention.self.key",
        "attn.v": "encoder.layer.{i}.attention.self.value",
        "attn.out": "encoder.layer.{i}.attention.output.dropout",
        "ffn.out": "encoder.layer.{i}.output.dropout",
        "block.out": "encoder.layer.{i}",
    },
    "gpt2": {
        "attn.out": "h.{i}.attn.resid_dropout",
        "ffn.out": "h.{i}.mlp.dropout",
        "block.out": "h.{i}",
    },
    "llama": {
        "attn.q": "layers.{i}.self_attn.q_proj",
        "attn.k": "layers.{i}.self_attn.k_proj",
        "attn.v": "layers.{i}.self_attn.v_proj",
        "attn.out": "layers.{i}.self_attn.o_proj",
        "ffn.out": "layers.{i}.mlp.down_proj",
        "ffn.up": "layers.{i}.mlp.up_proj",
        "block.out": "layers.{i}",
    },
    "t5": {
        "attn.q": "{stack}.block.{i}.layer.0.SelfAttention.q",
        "attn.k": "{stack}.block.{i}.layer.0.SelfAttention.k",
        "attn.v": "{stack}.block.{i}.layer.0.SelfAttention.v",
        "attn.out": "{stack}.block.{i}.layer.0.dropout",
        "cross.q": "{stack}.block.{i}.layer.1.EncDecAttention.q",
        "cross.v": "{stack}.block.{i}.layer.1.EncDecAttention.v",
        "cross.out": "{stack}.block.{i}.layer.1.dropout",
        "ffn.out": "{stack}.block.{i}.layer.{last}.dropout",
    },
}
# role -> the module whose input is the value h at that site.
INPUTS = {
    "bert": {"ffn.act": "encoder.layer.{i}.output.dense"},
    "gpt2": {"ffn.act": "h.{i}.mlp.c_proj"},
    "llama": {"ffn.act": "layers.{i}.mlp.down_proj"},
    "t5": {"ffn.act": "{stack}.block.{i}.layer.{last}.DenseReluDense.wo"},
}


def module_at(model: Any, kind: str, site: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The real module of a planned site, and whether the site is its input."""
    role, stack = site["role"], site["stack"]
    is_input = role in INPUTS[kind]
    path = (INPUTS if is_input else OUTPUTS)[kind][role]
    path = path.format(i=site["layer"], stack=stack, last=2 if stack == "decoder" else 1)
    return model.base_model.get_submodule(path), is_input


@contextmanager
def changed(
    model: Any, kind: str, sites: list[tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]]
) -> Iterator[None]:
    """Within, each site's h becomes change(x, h), x being its module's input."""
    with ExitStack() as stack:
        for site, change in sites:
            module, is_input = module_at(model, kind, site)
            if is_input:
                handle = module.register_forward_pre_hook(
                    lambda _m, args, change=change: (change(args[0], args[0]), *args[1:])
                )
            else:
                handle = module.register_forward_hook(
                    lambda _m, args, out, change=change: (
                        (change(args[0], out[0]), *out[1:])
                        if isinstance(out, tuple)
                        else change(args[0], out)
                    )
                )
            stack.callback(handle.remove)
        yield


@contextmanager
def seeing(model: Any, of: dict[nn.Module, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within, the attention of each module of `of` sees (key, value): (kv_heads, tokens, dim)."""

    def attend(module, query, key, value, attention_mask, position_bias=None, **kwargs):
        if module in of:
            if attention_mask is None and kwargs.get("is_causal", module.is_causal):
                ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
                attention_mask = ones.tril()[None, None]
            first, second = (t[None].expand(len(key), -1, -1, -1) for t in of[module])
            pad = (first.shape[2], 0)
            key, value = torch.cat([first, key], 2), torch.cat([second, value], 2)
            if attention_mask is not None:
                attention_mask = nn.functional.pad(attention_mask, pad, value=True)
            if position_bias is not None:
                position_bias = nn.functional.pad(position_bias, pad)
            kwargs["is_causal"] = False
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
        )

    with attention(model, attend):
        yield


@contextmanager
def attention(
    model: Any, attend: Callable[..., Any], mask: Callable[..., Any] = sdpa_mask
) -> Iterator[None]:
    """Within, the model's attentions are `attend`, and its masks what `mask` makes.

    Each module is told through its own config: T5's stacks have copies, which
    `set_attn_implementation` of some releases of transformers leaves as they are.
    """
    ALL_ATTENTION_FUNCTIONS.register("reference", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("reference", mask)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(c, c._attn_implementation) for c in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "reference"
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def fused_part(role: str, width: int) -> slice:
    """The features of GPT-2's one query-key-value projection that are a role's."""
    k = ("attn.q", "attn.k", "attn.v").index(role)
    return slice(k * width, (k + 1) * width)


def randomise(graph: Any, seed: int = 0, std: float = 0.3) -> None:
    """Give every inserted parameter random values, so that nothing is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in graph.peft_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_((std * noise).to(parameter))


def main_output(output: Any) -> Tensor:
    """The logits, or the last hidden state."""
    return output["logits"] if "logits" in output else output["last_hidden_state"]


def placed(graph: Any, insertion: str) -> list[tuple[dict[str, Any], nn.Module]]:
    """The planned sites of an insertion with their pieces."""
    planned = graph.meta["peftc.applied"].plan["insertions"]
    rows = next(p for p in planned if p["id"] == insertion)["sites"]
    return [(s, graph.get_submodule(f"peft.{insertion}.{s['name']}")) for s in rows]
