"""Example inputs for tracing, from the model's own forward signature and config."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftc.capture.program import Input
from peftc.ground.diagnostics import error

# Every independent axis has its own size: axes of one size become one symbol in the trace.
SIZES = {"batch": 3, "sequence": 11, "decoder_sequence": 7}
# Models with these losses make their decoder's ids of the text, where it has a decoder.
ONE_TEXT = ("ForSequenceClassification", "ForQuestionAnswering")


@dataclass(frozen=True)
class Example:
    """The inputs a model is traced with: their description and one value each."""

    inputs: tuple[Input, ...]
    values: dict[str, Tensor]

    def resized(self, sizes: dict[str, int], vocabulary: int) -> dict[str, Tensor]:
        """Fresh values at other sizes, padded at the end of every row but the first."""
        return {i.name: example_value(i, sizes, vocabulary) for i in self.inputs}


def example_for(model: Any, static_length: int | None = None) -> Example:
    """Describe and make what `model` is traced with, its length fixed where one is given.

    Raises:
        PeftcError: E203 where the model's main input is of an unknown kind.
    """
    accepted = set(inspect.signature(model.forward).parameters)
    config = model.config
    text = text_config(config)
    inputs: list[Input] = []
    axes = ("batch", static_length or "sequence")
    main = model.main_input_name
    if main == "input_ids":
        inputs.append(Input("input_ids", torch.long, axes, end=end_of(model)))
        inputs.append(Input("attention_mask", torch.long, axes, "ones"))
        if "token_type_ids" in accepted and (getattr(text, "type_vocab_size", None) or 0) > 0:
            inputs.append(Input("token_type_ids", torch.long, axes, "zeros"))
    elif main == "pixel_values":
        inputs.append(Input(main, model.dtype, ("batch", *image_shape(config))))
    elif main in ("input_values", "input_features"):
        dims = sound_shape(config, main)
        inputs.append(Input(main, model.dtype, dims))
        if "attention_mask" in accepted and isinstance(dims[1], str):
            inputs.append(Input("attention_mask", torch.long, dims[:2], "ones"))
    else:
        raise error(
            "E203",
            f"{type(model).__name__} takes `{main}`, which peftc does not know how to trace",
            help=("text, image and audio models can be captured",),
        )
    if "decoder_input_ids" in accepted and not derives_decoder_ids(model):
        decoder = ("batch", static_length or "decoder_sequence")
        inputs.append(Input("decoder_input_ids", torch.long, decoder))
        if "decoder_attention_mask" in accepted:
            inputs.append(Input("decoder_attention_mask", torch.long, decoder, "ones"))
    inputs = [i for i in inputs if i.name in accepted or i.name == "input_ids"]
    return example_of(inputs, config)


def example_of(inputs: list[Input], config: Any) -> Example:
    """These inputs with a value each."""
    sizes, vocabulary = sound_sizes(SIZES, config), vocabulary_of(config)
    return Example(tuple(inputs), {i.name: example_value(i, sizes, vocabulary) for i in inputs})


def text_config(config: Any) -> Any:
    """The config of the part of a model that reads text; of a text model its own."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def vocabulary_of(config: Any) -> int:
    """How many token ids there are; two where a model reads no text."""
    return getattr(text_config(config), "vocab_size", 2) or 2


def derives_decoder_ids(model: Any) -> bool:
    """Whether the model has a decoder, and a task for which it is given one text."""
    accepted = inspect.signature(model.forward).parameters
    return "decoder_input_ids" in accepted and getattr(model, "loss_type", None) in ONE_TEXT


def with_decoder(example: Example, model: Any) -> Example:
    """The example with ids for the decoder, their length free of the others'."""
    length = example.inputs[0].dims[1]
    length = length if isinstance(length, int) else "decoder_sequence"
    decoder = Input("decoder_input_ids", torch.long, ("batch", length))
    return example_of([*example.inputs, decoder], model.config)


def end_of(model: Any) -> int | None:
    """The id that ends every text, where the model makes its decoder's ids of the text."""
    end = getattr(model.config, "eos_token_id", None)
    return end if derives_decoder_ids(model) and isinstance(end, int) else None


def sound_shape(config: Any, main: str) -> tuple[int | str, ...]:
    """(batch, samples) of a raw wave, or frames and bins of a spectrogram, as the config has it."""
    bins = getattr(config, "num_mel_bins", None)
    if main == "input_values":
        return ("batch", config.max_length, bins) if bins else ("batch", "samples")
    if features := getattr(config, "feature_projection_input_dim", None):
        return "batch", "sequence", features
    if hasattr(config, "max_source_positions"):
        return "batch", bins or 80, 2 * config.max_source_positions
    return "batch", "sequence", bins or 80


def sound_sizes(sizes: dict[str, int], config: Any) -> dict[str, int]:
    """`sizes` with the samples that give so many frames after the convolutions."""
    frame = getattr(config, "inputs_to_logits_ratio", 1)
    return {**sizes, "samples": frame * (sizes["sequence"] + 2)}


def image_shape(config: Any) -> tuple[int, int, int]:
    """(channels, height, width) of an image model, or of the part of a model that sees.

    Raises:
        PeftcError: E203 where the config has no size.
    """
    own = config if hasattr(config, "image_size") else getattr(config, "vision_config", None)
    size = getattr(own, "image_size", None)
    if own is None or size is None:
        raise error(
            "E203",
            f"the {config.model_type} config does not say how large its images are",
            help=("set `image_size` in its config: the graph takes images of that size alone",),
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return own.num_channels, height, width


def ended(ids: Tensor, end: int) -> Tensor:
    """Ids of which every row has two end marks: at its start, and before its padding."""
    ids = ids.masked_fill(ids == end, end + 1)
    ids[:, 0] = end
    last = torch.full((len(ids),), -1)
    if ids.shape[1] > 3:
        last[1:] = -3  # where example masks end
    ids[torch.arange(len(ids)), last] = end
    return ids


def example_value(i: Input, sizes: dict[str, int], vocabulary: int) -> Tensor:
    """A value of the input's dtype and shape: ids small and varied, masks with some padding."""
    shape = [sizes[d] if isinstance(d, str) else d for d in i.dims]
    if i.name.endswith("mask"):
        mask = torch.ones(shape, dtype=i.dtype)
        if shape[-1] > 3:
            mask[1:, -2:] = 0
        return mask
    if i.below is not None:  # every choice in turn, another one first at every length
        count = torch.arange(torch.Size(shape).numel()) + sizes["sequence"]
        return (count % i.below).reshape(shape)
    if i.name == "token_type_ids":
        return torch.zeros(shape, dtype=i.dtype)
    if i.dtype == torch.long:
        # No id below 3: those are usually padding, start and end marks.
        count = torch.arange(shape[0] * shape[1]).reshape(shape)
        ids = count * 7 % max(vocabulary - 3, 1) + min(3, vocabulary - 1)
        return ids if i.end is None else ended(ids, i.end)
    values = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float32)
    return torch.sin(values).reshape(shape).to(i.dtype)
