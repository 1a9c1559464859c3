"""A tiny random model of any text type that transformers has, and of some for images and sound."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
)
from transformers.models.auto import modeling_auto as auto

from peftc.capture.inputs import example_for

FACTORIES = {
    "causal-lm": (AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked-lm": (AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "seq2seq-lm": (AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}
SENSES = {
    "image-classification": (
        AutoModelForImageClassification, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    ),
    "audio-classification": (
        AutoModelForAudioClassification, auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    ),
}  # fmt: skip
# Transformers among them, most of the others are convolutions.
SEEN_AND_HEARD = {
    "image-classification": (
        "beit", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit",
        "ijepa", "siglip", "vit", "vit_msn",
    ),
    "audio-classification": (
        "audio-spectrogram-transformer", "data2vec-audio", "hubert", "unispeech",
        "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm", "whisper",
    ),
}  # fmt: skip
# Their own sizes.
SENSED: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 8,
    "num_labels": 5,
    "conv_dim": (12, 14),
    "conv_stride": (4, 2),
    "conv_kernel": (5, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "num_mel_bins": 24,
    "max_source_positions": 30,
    "max_length": 40,
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
    "audio_hidden_size": 32,
    "adapter_in_dim": 32,
    "adapter_input_size": 32,
    "adapter_out_dim": 32,
    "num_codebooks": 1,
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

BERT = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
PER_LAYER: dict[str, Any] = {"per_layer_config": {}, "num_hidden_layers": 2}
# What names alone do not tell: types whose sizes depend on one another, or have no default.
MORE: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "deepseek_v2": {"head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {**PER_LAYER, "head_dim": 16},
    "encoder-decoder": {
        "decoder": {
            **{k: v for k, v in SIZES.items() if k in BERT},
            "model_type": "bert",
            "is_decoder": True,
            "add_cross_attention": True,
        }
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "intermediate_size": [56, 56],
        "activation_sparsity_pattern": [0.9, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 199,
        "laurel_rank": 6,
    },
    "gemma4_text": {
        **PER_LAYER,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 199,
    },
    "gemma4_unified_text": {
        **PER_LAYER,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 199,
    },
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["linear_attention", "full_attention"]},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "num_hidden_layers": 2,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 2,
        }
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "luke": {"entity_vocab_size": 50},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {"d_latents": 32, "num_latents": 9, "num_self_attends_per_block": 2},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32},
    "neomme": {"head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 100,
        "hc_lowrank": 8,
        "ple_embed_dim": 32,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [12, 20], "axial_pos_shape": [10, 16]},
    "roc_bert": {"pronunciation_vocab_size": 60, "shape_vocab_size": 70},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def types() -> list[tuple[str, str]]:
    """Every (type, task), the first task that a type has, in alphabetical order."""
    found: dict[str, str] = {}
    for task, (_, mapping) in FACTORIES.items():
        for name in mapping:
            found.setdefault(name, task)
    return sorted(found.items())


def senses() -> list[tuple[str, str]]:
    """Every (type, task) for images and sound that this transformers has."""
    return [(n, t) for t, names in SEEN_AND_HEARD.items() for n in names if n in SENSES[t][1]]


def shrink(name: str, sensed: bool = False) -> Any:
    """The default config of a type with small sizes, those that it has, inside its parts too."""
    config = small(CONFIG_MAPPING[name])
    if sensed:
        own = config.to_dict()
        config = type(config)(**{**own, **{k: v for k, v in SENSED.items() if k in own}})
    return config


def small(config_class: Any) -> Any:
    """A small config of a class: what the class refuses to be given is left as it is."""
    try:
        default = config_class()
    except Exception:  # its own defaults do not go together
        default = config_class(**MORE.get(config_class.model_type, {}))
    given = shared(default)
    for part in config_class.sub_configs:
        value = getattr(default, part, None)
        if isinstance(value, PretrainedConfig) and value is not default:
            given[part] = {**small(type(value)).to_dict(), **MORE.get(value.model_type, {})}
    for key, value in MORE.get(config_class.model_type, {}).items():
        nested = isinstance(value, dict) and isinstance(given.get(key), dict)
        given[key] = {**given[key], **value} if nested else value
    while True:
        try:
            return config_class(**given)
        except Exception as cause:
            text = str(cause).replace("layers_block_type", "layer_types")
            refused = [k for k in given if f"`{k}`" in text or f"'{k}'" in text]
            if not refused:
                raise
            given.pop(refused[0])


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
    if default.to_dict().get("per_layer_config"):
        sizes["per_layer_config"] = {}  # sizes by layer, for the layers that there were
    kinds = list(dict.fromkeys(known(default, "layer_types") or ()))
    if kinds:  # one layer of each kind, and at least two
        sizes["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    return sizes


def known(config: Any, key: str) -> Any:
    """A config's value; where layers differ, what it says for all."""
    try:
        return getattr(config, key, None)
    except Exception:
        return config.to_dict().get(key)


def build(name: str, task: str) -> Any:
    """The tiny model, weights large enough that every path matters.

    Experts run as batched products, as in the graph: their other forms add in another order.
    """
    torch.manual_seed(0)
    factories = {**FACTORIES, **SENSES}
    config = shrink(name, task in SENSES)
    if isinstance(factories[task][1][name], tuple):  # several classes: the first
        config.architectures = [factories[task][1][name][0]]
    try:
        model = factories[task][0].from_config(config).eval()
    except AttributeError:  # a composite type whose language model takes its decoder's config
        own = factories[task][1][name]
        model = getattr(transformers, own)._from_config(config.get_text_config(decoder=True)).eval()
    with contextlib.suppress(ValueError, AttributeError):
        model.set_experts_implementation("batched_mm")
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
    if model.main_input_name != "input_ids":
        return sensed(model, batch, length, generator)
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


def sensed(
    model: Any, batch: int, length: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """An image or a sound of about so many frames, every row but the first padded at its end."""
    frame = getattr(model.config, "inputs_to_logits_ratio", 1)
    sizes = {"batch": batch, "sequence": length, "samples": frame * (length + 2)}
    result = {}
    for i in example_for(model).inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in i.dims]
        if i.name == "attention_mask":
            result[i.name] = torch.ones(shape, dtype=i.dtype)
            result[i.name][1:, -2 * frame :] = 0
        elif i.dtype.is_floating_point:
            result[i.name] = torch.randn(shape, generator=generator)
    return result
