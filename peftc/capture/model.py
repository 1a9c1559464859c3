"""Capture as a whole: describe, trace, normalise."""

from __future__ import annotations

from typing import Any

from peftc.capture.attention_dropout import lift_attention_dropout
from peftc.capture.check import check_sizes
from peftc.capture.decoder_ids import capture_derived
from peftc.capture.fake import has_numbers
from peftc.capture.inputs import derives_decoder_ids, example_for
from peftc.capture.normalise import normalise
from peftc.capture.program import Program
from peftc.capture.suitable import check_suitable
from peftc.capture.trace import trace


def capture(model: Any, *, static_length: int | None = None) -> Program:
    """The Program of a `PreTrainedModel`, on real, fake or meta tensors; the model is unchanged.

    With `static_length` the graph takes inputs of exactly that many tokens; batch stays free.

    Raises:
        PeftcError: E201 where torch.export cannot capture it, E202 where the graph does not hold
            at other sizes, E203 for unknown inputs, E208 to E212 and E214 for a model that is
            quantised, offloaded, adapted, wrapped, without a padding token, or half resized.
    """
    check_suitable(model)
    example = example_for(model, static_length)
    if derives_decoder_ids(model):
        program = capture_derived(model, example)
    else:
        program = normalise(trace(model, example), model, example)
    if has_data(model):
        check_sizes(program, model, example)
    lift_attention_dropout(program, model, example)
    return program


def has_data(model: Any) -> bool:
    """Whether every parameter holds numbers: none is a meta or fake tensor."""
    return all(has_numbers(p) for p in model.parameters())
