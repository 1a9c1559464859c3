"""Buffers of a base model: what a lock keeps of them, and whether another one is the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peftc.artifact.lock import Buffer
from peftc.capture import Program
from peftc.capture.fake import has_numbers
from peftc.capture.piece_name import is_inserted
from peftc.capture.stored import digest, stored_of

SAMPLED = 256  # numbers of a buffer that are kept: all of most, as of rotary frequencies
NOISE = 1e-6  # of the largest number: what powers and sines differ by from device to device


def buffer_facts(graph: Program) -> dict[str, Buffer]:
    """What a lock keeps of every buffer of a graph, by name."""
    return {n: described(b, n, graph) for n, b in graph.named_buffers()}


def described(buffer: Tensor, name: str, graph: Program) -> Buffer:
    """One buffer. Integers, and the factors of inserted pieces, are the same on every device."""
    exact = not buffer.is_floating_point() or is_inserted(name)
    numbers = None if exact or not has_numbers(buffer) else sample(buffer)
    return Buffer(
        sha256=digest(buffer, name, stored_of(graph)),
        dtype=str(buffer.dtype).removeprefix("torch."),
        shape=list(buffer.shape),
        sample=numbers,
    )


def sample(buffer: Tensor) -> list[float]:
    """At most `SAMPLED` numbers of a tensor, at even distances."""
    flat = buffer.detach().cpu().reshape(-1)
    count = min(SAMPLED, flat.numel())
    places = torch.linspace(0, max(0, flat.numel() - 1), count, dtype=torch.float64).round().long()
    return flat[places].double().tolist()


def compared(
    found: Mapping[str, Buffer], wanted: Mapping[str, Buffer]
) -> tuple[list[str], list[str]]:
    """The buffers that are not the same, and those that differ in the last digits alone."""
    other, near = [], []
    for name in sorted(found.keys() | wanted.keys()):
        mine, theirs = found.get(name), wanted.get(name)
        if mine is None or theirs is None:
            other.append(name)
        elif mine.sha256 != theirs.sha256:
            (near if is_near(mine, theirs) else other).append(name)
    return other, near


def is_near(mine: Buffer, theirs: Buffer) -> bool:
    """Whether two unequal buffers are one, computed on two devices.

    In a table of angles, an error of a frequency counts once for each position before. Where the
    samples are equal, what differs lies elsewhere, and is no noise.
    """
    if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
        return False
    if not mine.sample or not theirs.sample or mine.sample == theirs.sample:
        return False
    a = torch.tensor(mine.sample, dtype=torch.float64)
    b = torch.tensor(theirs.sample, dtype=torch.float64)
    rows = mine.shape[-2] if len(mine.shape) > 1 else 1
    noise = max(NOISE, torch.finfo(getattr(torch, mine.dtype)).eps) + NOISE / 10 * (rows - 1)
    return bool(torch.all((a - b).abs() <= noise * b.abs().max()))
