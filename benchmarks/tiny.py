"""A tiny random model of any text type that transformers has, from its default config."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)
from transformers.models.auto import modeling_auto as auto

FACTORIES = {
    "causal-lm": (AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked-lm": (AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "seq2seq-lm": (AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}
# Sizes by the names that configs give them: never square, two layers, fewer key/value heads.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), 32),
    **dict.fromkeys(("decoder_hidden_size", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"), 56),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 56),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 160),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "num_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    "vocab_size": 199,
    "type_vocab_size": 2,
    "head_dim": 8,
    "d_kv": 8,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def types() -> list[tuple[str, str]]:
    """Every (type, task), the first task that a type has, in alphabetical order."""
    found: dict[str, str] = {}
    for task, (_, mapping) in FACTORIES.items():
        for name in mapping:
            found.setdefault(name, task)
    return sorted(found.items())


def shrink(name: str, **more: Any) -> Any:
    """The default config of a type with small sizes, those that it has."""
    config_class = CONFIG_MAPPING[name]
    default = config_class()
    if hasattr(default, "text_config") and default.text_config is not default:
        text = type(default.text_config)
        return config_class(
            text_config={**shared(default.text_config), "model_type": text.model_type}
        )
    return config_class(**{**shared(default), **more})


def shared(default: Any) -> dict[str, Any]:
    """The sizes that a config has."""
    own = {*default.to_dict(), *type(default).attribute_map}
    sizes = {
        k: v for k, v in SIZES.items() if k in own and (known(default, k) or k == "vocab_size")
    }
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        sizes[token] = SIZES[token]
    heads = known(default, "num_attention_heads")
    if "num_key_value_heads" in sizes and known(default, "num_key_value_heads") == heads:
        sizes["num_key_value_heads"] = 4
    return sizes


def known(config: Any, key: str) -> Any:
    """A config's value, None where it has none for all layers."""
    try:
        return getattr(config, key, None)
    except (AttributeError, ValueError):
        return None


def build(name: str, task: str) -> Any:
    """The tiny model, weights large enough that every path matters."""
    torch.manual_seed(0)
    model = FACTORIES[task][0].from_config(shrink(name)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data.copy_(0.15 * noise)
        else:
            parameter.data.add_(0.05 * noise)
    return model


def inputs(model: Any, batch: int, length: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Ids and a mask, every row but the first padded at its end."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config.get_text_config()
    ids = torch.randint(4, config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, -2:] = 0
    result = {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id or 0)}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        result["attention_mask"] = mask
    if model.config.is_encoder_decoder:
        shape = (batch, length - 2)
        result["decoder_input_ids"] = torch.randint(
            4, config.vocab_size, shape, generator=generator
        )
    return result
