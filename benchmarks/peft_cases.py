"""Random checkpoints of PEFT on tiny models: what the parity matrix and its tests compare with."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from peftc.capture.inputs import derives_decoder_ids

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL = {**SIZES, "intermediate_size": 40, "max_position_embeddings": 64, "num_labels": 5}
ROTARY = {**SMALL, "num_key_value_heads": 2, "head_dim": 10, "pad_token_id": 0}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {**SMALL, "vocab_size": 99, "type_vocab_size": 2}),
    "roberta": ("RobertaConfig", {**SMALL, "vocab_size": 101, "type_vocab_size": 1}),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": 103, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40,
            "max_position_embeddings": 64, "num_labels": 5,
        },
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 97, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 44,
            "n_positions": 64, "num_labels": 5, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "llama": ("LlamaConfig", {**ROTARY, "vocab_size": 95}),
    "qwen2": ("Qwen2Config", {**ROTARY, "vocab_size": 91}),
    "qwen3": ("Qwen3Config", {**ROTARY, "vocab_size": 89}),
    "mistral": ("MistralConfig", {**ROTARY, "vocab_size": 87, "sliding_window": 6}),
    "t5": (
        "T5Config",
        {
            "vocab_size": 93, "d_model": 24, "d_kv": 10, "d_ff": 44, "num_layers": 4,
            "num_decoder_layers": 3, "num_heads": 4, "decoder_start_token_id": 0,
            "pad_token_id": 0, "num_labels": 5,
        },
    ),
    "bart": (
        "BartConfig",
        {
            "vocab_size": 107, "d_model": 24, "encoder_layers": 4, "decoder_layers": 4,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 44, "max_position_embeddings": 64, "num_labels": 5,
            "scale_embedding": True,
        },
    ),
}  # fmt: skip
# PEFT's task type: transformers' factory.
TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("gpt2", "llama", "qwen2", "qwen3", "mistral")
OF = {  # every class that transformers has
    "SEQ_CLS": (*ENCODERS, *DECODERS, "t5", "bart"),
    "TOKEN_CLS": (*ENCODERS, *DECODERS, "t5"),
    "QUESTION_ANS": (*ENCODERS, *DECODERS, "t5", "bart"),
    "CAUSAL_LM": DECODERS,
    "SEQ_2_SEQ_LM": ("t5", "bart"),
}
TOKENS = 5
IA3: dict[str, dict[str, Any]] = {  # where PEFT has no default
    "distilbert": {"target_modules": ["k_lin", "v_lin", "lin2"], "feedforward_modules": ["lin2"]},
    "qwen3": {
        "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"],
    },
}  # fmt: skip
EMBEDDING = {
    "bert": "word_embeddings",
    "roberta": "word_embeddings",
    "distilbert": "word_embeddings",
    "gpt2": "wte",
}


def config_of(method: str, kind: str, task: str) -> Any:
    """The PEFT configuration of one method."""
    import peft

    common = {"task_type": task}
    low_rank = {**common, "r": 3, "lora_alpha": 7, "init_lora_weights": False}
    # Heads are saved whole, so they are no targets; "all-linear" of PEFT leaves out only some.
    heads = ["classifier", "pre_classifier", "score", "qa_outputs"]
    all_linear = {**low_rank, "target_modules": "all-linear", "exclude_modules": heads}
    if method == "lora":
        return peft.LoraConfig(**all_linear)
    if method == "lora patterns":
        return peft.LoraConfig(
            **all_linear, use_rslora=True, bias="lora_only",
            rank_pattern={r"(layers|layer|h|block)\.1\..*": 2}, alpha_pattern={r".*\.0\..*": 5},
        )  # fmt: skip
    if method == "lora bias":
        return peft.LoraConfig(
            **{**all_linear, "init_lora_weights": True}, lora_bias=True, bias="all"
        )
    if method == "lora embedding":
        return peft.LoraConfig(**low_rank, target_modules=[EMBEDDING.get(kind, "embed_tokens")])
    if method == "dora":
        return peft.LoraConfig(**{**all_linear, "init_lora_weights": True}, use_dora=True)
    if method == "ia3":
        return peft.IA3Config(**common, **IA3.get(kind, {}))
    sizes: dict[str, Any] = {"num_virtual_tokens": TOKENS}
    if kind == "distilbert":  # whose config has other names than PEFT reads
        sizes |= {"token_dim": 24, "num_layers": 3, "num_attention_heads": 4}
    if method == "prefix":
        sizes |= {"token_dim": 40} if kind == "t5" else {}
        return peft.PrefixTuningConfig(**common, **sizes)
    if method == "prompt":
        return peft.PromptTuningConfig(**common, **sizes)
    return peft.PromptEncoderConfig(**common, **sizes, encoder_hidden_size=12)


def build(kind: str, task: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny random model, weights large enough that every path matters, the same every time."""
    name, sizes = CONFIGS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**sizes)
    if task == "QUESTION_ANS":
        config.num_labels = 2  # a start and an end
    model = getattr(transformers, TASKS[task]).from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data.copy_(0.2 * noise)
        else:
            parameter.data.add_(0.05 * noise)
    return model.to(dtype)


@functools.cache
def captured(kind: str, task: str, dtype: torch.dtype = torch.float32) -> Any:
    """The shared capture of a model; imports clone it."""
    from peftc.capture import capture

    return capture(build(kind, task, dtype))


def adapted(method: str, kind: str, task: str, model: Any = None) -> Any:
    """A PEFT model in eval mode whose trainable tensors are random and not zero."""
    import peft

    model = model or build(kind, task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config_of(method, kind, task)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude" in name or "ia3_l" in name:
                parameter.data.mul_(1 + 0.2 * noise)
            else:
                parameter.data.add_(0.2 * noise)
    return model


def saved(model: Any, folder: str | Path) -> Path:
    """The checkpoint as PEFT writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return Path(folder)


def inputs(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Ids and masks, every row but the first padded at its end; decoder inputs padded as well.

    A model that makes its decoder's ids of the text has none, and finds its end marks.
    """
    generator = torch.Generator().manual_seed(length)
    config = model.config
    result = padded("", config, batch, length, generator)
    if (getattr(config, "type_vocab_size", 0) or 0) > 1:
        result["token_type_ids"] = torch.randint(0, 2, (batch, length), generator=generator)
    if config.is_encoder_decoder and derives_decoder_ids(model):
        last = result["attention_mask"].sum(1) - 1
        result["input_ids"][torch.arange(batch), last] = config.eos_token_id
    elif config.is_encoder_decoder:
        result |= padded("decoder_", config, batch, length - 3, generator)
    return result


def padded(prefix: str, config: Any, batch: int, length: int, generator: Any) -> dict[str, Tensor]:
    """Ids and a mask of one stack."""
    ids = torch.randint(4, config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, length - 1 - row % 3 :] = 0
    name = "decoder_attention_mask" if prefix else "attention_mask"
    return {f"{prefix}input_ids": ids.masked_fill(mask == 0, config.pad_token_id or 0), name: mask}


def difference(ours: Any, theirs: Any, given: dict[str, Tensor]) -> float:
    """The largest difference of what both give, at positions that are no padding."""
    worst = 0.0
    for name in ("logits", "start_logits", "end_logits"):
        if name not in ours:
            continue
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            return float("nan")
        gap = (a - b).abs()
        mask = given.get("decoder_attention_mask", given["attention_mask"])
        by_token = name != "logits" or gap.dim() == 3
        if by_token and gap.shape[1] in (mask.shape[1], mask.shape[1] + TOKENS):
            mask = torch.nn.functional.pad(mask, (gap.shape[1] - mask.shape[1], 0), value=1)
            gap = gap * mask.reshape(*mask.shape, *[1] * (gap.dim() - 2))
        worst = max(worst, gap.max().item())
    return worst


def told(model: Any, plain: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a PEFT model takes: with a prompt, of whose ids none is made, the decoder's too."""
    if not derives_decoder_ids(plain) or not getattr(model, "prompt_encoder", None):
        return given
    start = torch.full_like(given["input_ids"][:, :1], plain.config.decoder_start_token_id)
    return {**given, "decoder_input_ids": torch.cat([start, given["input_ids"][:, :-1]], 1)}


def batches(model: Any, plain: Any) -> list[dict[str, Tensor]]:
    """Inputs of two padded shapes, as a PEFT model takes them."""
    found = [inputs(plain, *shape) for shape in ((3, 9), (2, 14))]
    if type(model).__name__ == "PeftModelForQuestionAnswering":
        for given in found:
            given.pop("token_type_ids", None)  # which it takes and does not pass on
    return found


def compare(graph: Any, model: Any, plain: Any) -> tuple[float, float]:
    """(the largest difference of a graph from a PEFT model, its effect) at two padded shapes."""
    worst, effect = 0.0, 0.0
    for given in batches(model, plain):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = told(model, plain, given)
            ours, theirs, base = graph(**given), model(**asked), plain(**given)
        gap = difference(ours, theirs, given)
        worst = gap if gap != gap else max(worst, gap)
        effect = max(effect, difference(without_prompt(ours, base), base, given))
    return worst, effect


def without_prompt(ours: Any, base: Any) -> dict[str, Tensor]:
    """Outputs as long as those of the base: of a prompt that stays in them, what is behind it."""
    found = {}
    for name in ("logits", "start_logits", "end_logits"):
        if name in ours:
            surplus = ours[name].shape[1] - base[name].shape[1]
            found[name] = ours[name][:, surplus:]
    return found
