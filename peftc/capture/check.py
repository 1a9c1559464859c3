"""After a capture: the graph against the model at other sizes, one row alone, and with padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from peftc.capture.inputs import Example, sound_sizes, vocabulary_of
from peftc.capture.program import Program
from peftc.capture.trace import quiet, tracing_state
from peftc.ground.diagnostics import error

# Shorter than the traced example at batch 1; longer than it and than a 64-token chunk, padded.
SIZES = (
    {"batch": 1, "sequence": 5, "decoder_sequence": 4},
    {"batch": 2, "sequence": 70, "decoder_sequence": 9},
)
SHOWN = ("batch", "sequence")
# Of the largest value; experts and kernels may add in another order in the graph.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_sizes(program: Program, model: Any, example: Example) -> None:
    """Run graph and model at `SIZES`; both have data.

    Raises:
        PeftcError: E202 where the graph does not run there, or gives other numbers.
    """
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else None
    longest = getattr(text, "max_position_embeddings", None) or 0
    longest = longest if longest > 0 else SIZES[-1]["sequence"]
    for size in SIZES:
        fitted = {n: min(s, int(longest)) for n, s in size.items()}
        fitted = sound_sizes(fitted, model.config)
        why = failure(program, model, example, fitted)
        if why is None:
            continue
        notes, free = [why[:300]], any("sequence" in i.dims for i in example.inputs)
        shorter = {**fitted, "sequence": example_length(example)}
        if free and fitted["sequence"] > shorter["sequence"]:
            most = last_good(program, model, example, shorter, fitted["sequence"])
            if most > shorter["sequence"]:
                notes.append(
                    f"it holds up to {most} tokens; what the model's code does beyond, in further "
                    f"chunks or windows, is not in a trace of {shorter['sequence']} tokens"
                )
        raise not_general(model, fitted, notes)


def failure(program: Program, model: Any, example: Example, size: dict[str, int]) -> str | None:
    """Why the graph does not hold at a size; None where it does, or the model does not run."""
    vocabulary = vocabulary_of(model.config)
    device = next(model.parameters()).device
    given = {n: v.to(device) for n, v in example.resized(size, vocabulary).items()}
    with tracing_state(model), quiet(), torch.no_grad():
        try:
            wanted = model(**given)
        except Exception:
            return None  # the model itself does not take these sizes
        try:
            found = program.flat(*program.signature.bind(given))
        except Exception as cause:
            first = next((t for t in str(cause).splitlines() if t.strip()), "")
            return f"{type(cause).__name__}: {first}"
    return None if worst(found, wanted) <= 1 else "its outputs differ from the model's"


def example_length(example: Example) -> int:
    """The tokens of the example that was traced."""
    main = example.inputs[0]
    return example.values[main.name].shape[-1 if len(main.dims) == 2 else 1]


def last_good(
    program: Program, model: Any, example: Example, size: dict[str, int], bad: int
) -> int:
    """The largest length below `bad` at which the graph holds, by halving from `size`."""
    good = size["sequence"]
    while bad - good > 1:
        middle = (good + bad) // 2
        at = {**size, "sequence": middle}
        good, bad = (
            (middle, bad) if failure(program, model, example, at) is None else (good, middle)
        )
    return good


def worst(found: Any, wanted: Any) -> float:
    """The largest difference of two outputs, in units of the tolerance."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=False)
    ratios = [0.0]
    for a, b in pairs:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not b.is_floating_point():
            continue
        if a.shape != b.shape:
            return float("inf")
        scale = max(1.0, b.nan_to_num().abs().max().item()) * TOLERANCE[b.dtype]
        ratios.append((a.nan_to_num() - b.nan_to_num()).abs().max().item() / scale)
    return max(ratios)


def not_general(model: Any, size: dict[str, int], notes: Sequence[str]) -> Exception:
    """E202: the graph holds for the traced sizes only."""
    shape = ", ".join(f"{n.replace('_', ' ')} {s}" for n, s in size.items() if n in SHOWN)
    return error(
        "E202",
        f"the graph of {type(model).__name__} does not hold at {shape}",
        notes=tuple(notes),
        help=("--static-length N captures it for inputs of exactly N tokens",),
    )
