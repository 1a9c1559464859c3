"""Tiny random models: sizes never square, key/value heads fewer than heads, weights not small."""

from __future__ import annotations

import functools
import gc
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    ViTConfig,
)

CONFIGS = {
    "bert": lambda: BertConfig(
        vocab_size=99, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=64, type_vocab_size=2, num_labels=5,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=97, n_embd=24, n_layer=3, n_head=4, n_inner=44, n_positions=64,
        num_labels=5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=95, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, intermediate_size=36, max_position_embeddings=64,
        num_labels=5, pad_token_id=0,
    ),
    "t5": lambda: T5Config(
        vocab_size=93, d_model=24, d_kv=10, d_ff=44, num_layers=3, num_decoder_layers=2,
        num_heads=4, decoder_start_token_id=0, pad_token_id=0, num_labels=5,
    ),
    "vit": lambda: ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
        image_size=12, patch_size=4, num_labels=5,
    ),
}  # fmt: skip
TASKS = {
    "base": AutoModel,
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "causal-lm": AutoModelForCausalLM,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
    "image-classification": AutoModelForImageClassification,
}


def build(kind: str, task: str = "base", seed: int = 0, layers: int | None = None) -> Any:
    """A fresh model in eval mode with weights large enough that every path matters."""
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    for name in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if layers is not None and hasattr(config, name):
            setattr(config, name, layers)
    model = TASKS[task].from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.2, generator=generator)
        else:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def model(kind: str, task: str = "base", layers: int | None = None) -> Any:
    """The shared model of a kind and task; tests must not change it."""
    return shared_model(kind, task, layers)


@functools.cache
def shared_model(kind: str, task: str, layers: int | None) -> Any:
    """The one model of these arguments, however they are given."""
    return build(kind, task, layers=layers)


def captured(kind: str, task: str = "base", layers: int | None = None) -> Any:
    """The shared capture of `model(kind, task)`; tests clone it before they rewrite it.

    What every layer has alike, as what an exporter makes of a piece, is seen in one of them.
    """
    return shared_capture(kind, task, layers)


@functools.cache
def shared_capture(kind: str, task: str, layers: int | None) -> Any:
    """The one capture of these arguments, over the shared model's own weights."""
    from peftc.capture import capture

    made = model(kind, task, layers)
    return kept(looks_of(made, None), capture(made))


CAPTURES: dict[tuple[Any, ...], Any] = {}


def captured_once(model: Any, *, static_length: int | None = None) -> Any:
    """`capture`, which takes seconds, done once for models of one class, config and weights."""
    from peftc.capture import capture

    looks = looks_of(model, static_length)
    if looks not in CAPTURES:
        kept(looks, capture(model, static_length=static_length))
    program = CAPTURES[looks].clone()
    program.signature = replace(program.signature, config=model.config)
    return program


def kept(looks: tuple[Any, ...], program: Any) -> Any:
    """The program, noted; it lives on, so that no collection of garbage need go through it."""
    CAPTURES[looks] = program
    gc.freeze()
    return program


def looks_of(model: Any, static_length: int | None) -> tuple[Any, ...]:
    """What models have in common that give one graph over the same numbers."""
    from peftc.capture.fake import has_numbers
    from peftc.planning.file import config_hash

    tensors = [*model.parameters(), *model.buffers()]
    sums = [t.sum().item() if has_numbers(t) else t.device.type for t in tensors]
    return (
        type(model).__name__, config_hash(model.config), model.config._attn_implementation,
        model.dtype, static_length, *sums,
    )  # fmt: skip


def inputs(model: Any, batch: int = 3, length: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    """Keyword inputs with padded rows: right-padded, every row but the first."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    ids = torch.randint(4, config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, length - row % length :] = 0 if row % length else 1
    result = {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id or 0)}
    result["attention_mask"] = mask
    if (getattr(config, "type_vocab_size", 0) or 0) > 1:
        result["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
    if config.is_encoder_decoder:
        shape = (batch, length - 3)
        result["decoder_input_ids"] = torch.randint(
            4, config.vocab_size, shape, generator=generator
        )
    return result


def real_rows(output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`output` with the positions of padding set to zero."""
    return output * mask.reshape(*mask.shape, *[1] * (output.dim() - mask.dim())).to(output.dtype)
