"""Capture as a whole: describe, trace, normalise."""

from __future__ import annotations

from typing import Any

from peftc.capture.attention_dropout import lift_attention_dropout
from peftc.capture.inputs import example_for
from peftc.capture.normalise import normalise
from peftc.capture.program import Program
from peftc.capture.trace import trace


def capture(model: Any) -> Program:
    """The Program of a `PreTrainedModel`, on real, fake or meta tensors; the model is unchanged.

    Raises:
        PeftcError: E201 where torch.export cannot capture it, E203 for unknown inputs.
    """
    example = example_for(model)
    program = normalise(trace(model, example), model, example)
    lift_attention_dropout(program, model, example)
    return program
