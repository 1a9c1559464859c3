"""The bytes of a tensor in a file that does not say where it has them."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

HEAD, PART = 64, 1 << 20  # bytes


class Inside:
    """A mapped file in which tensors are looked for, most of them in the file's order."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.end = 0  # of what was found last

    def has(self, tensor: Tensor) -> bool:
        """Whether the tensor's bytes stand anywhere in the file."""
        value = tensor.detach().cpu().contiguous().reshape(-1)
        if not value.numel():
            return True
        wanted = value.view(torch.uint8).numpy().data
        head = bytes(wanted[:HEAD])
        for first, last in ((self.end, len(self.data)), (0, self.end)):
            place = self.data.find(head, first)
            while 0 <= place < last:
                if self.same(place, wanted):
                    self.end = place + len(wanted)
                    return True
                place = self.data.find(head, place + 1)
        return False

    def same(self, place: int, wanted: memoryview) -> bool:
        """Whether the file has these bytes at a place."""
        if place + len(wanted) > len(self.data):
            return False
        return all(
            self.data[place + k : place + k + PART][: len(wanted) - k] == wanted[k : k + PART]
            for k in range(0, len(wanted), PART)
        )
