"""Weights as they lie in safetensors files: where each is, its digest, its numbers on request."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from peftc.capture.fake import has_numbers
from peftc.capture.program import STORED, Program, attribute
from peftc.ground.diagnostics import error

CHUNK = 1 << 20  # bytes read at a time: a digest needs no more memory than this


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: `length` bytes from `offset` on, counted from the file's start."""

    file: Path
    dtype: torch.dtype | None  # None for one that torch cannot compute with
    shape: tuple[int, ...]
    offset: int
    length: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        if self.dtype is None:
            raise error("E315", f"{self.file}: a tensor of a dtype that is not known")
        if not self.length:
            return torch.empty(self.shape, dtype=self.dtype)
        data = bytearray(self.length)
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            file.readinto(data)
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)


@dataclass
class StoredWeights:
    """The tensors of one file, or of several shards, and the names that a graph gives them."""

    files: tuple[Path, ...]
    tensors: dict[str, Stored]
    names: dict[str, str] = field(default_factory=dict)  # of the state_dict -> of the files
    digests: dict[str, str] = field(default_factory=dict)
    sha256: dict[Path, str] = field(default_factory=dict)

    def get(self, name: str) -> Stored | None:
        """Where the weight of this state_dict name is, or None."""
        key = self.names.get(name)
        return None if key is None else self.tensors[key]

    def dtypes_of(self, name: str) -> set[str]:
        """The dtypes of the tensors that a state_dict name can mean, as a lock names them."""
        return {
            str(t.dtype).removeprefix("torch.")
            for k, t in self.tensors.items()
            if k == name or fits(name, k)
        }

    def shapes_of(self, name: str) -> list[tuple[int, ...]]:
        """The shapes of the tensors that a state_dict name can mean."""
        return [t.shape for k, t in self.tensors.items() if k == name or fits(name, k)]

    def digest(self, name: str) -> str:
        """The digest of the weight of this state_dict name; "" where no file has it."""
        self.hash()
        return self.digests.get(self.names.get(name, ""), "")

    def hash(self) -> None:
        """Read every file once, in small parts, for the digest of each tensor and of the file.

        A tensor's digest is the SHA-256 of its dtype, shape and bytes, as in a lock.
        """
        for path in self.files:
            if path in self.sha256:
                continue
            whole = hashlib.sha256()
            inside = [(k, t) for k, t in self.tensors.items() if t.file == path]
            with open(path, "rb") as file:
                for key, t in sorted(inside, key=lambda item: item[1].offset):
                    feed(file, t.offset - file.tell(), whole)
                    one = hashlib.sha256(f"{t.dtype}{list(t.shape)}".encode())
                    feed(file, t.length, whole, one)
                    self.digests[key] = one.hexdigest()
                feed(file, path.stat().st_size - file.tell(), whole)
            self.sha256[path] = whole.hexdigest()

    def match(self, wanted: Mapping[str, str]) -> list[str]:
        """Name tensors by content: state_dict name -> digest; those that no file holds.

        Neither prefixes, tied weights nor renamed tensors matter; of equal tensors the one of
        the same name is taken.
        """
        self.hash()
        by_digest: dict[str, list[str]] = {}
        for key, digest in self.digests.items():
            by_digest.setdefault(digest, []).append(key)
        absent = []
        for name, digest in wanted.items():
            if self.digests.get(name) == digest:
                self.names[name] = name
            elif digest in by_digest:
                self.names[name] = nearest(name, by_digest[digest])
            else:
                absent.append(name)
        return absent

    def same_name(self, name: str, shape: Iterable[int]) -> str | None:
        """The only tensor whose name and shape fit a state_dict name, prefixes left aside."""
        size = tuple(shape)
        if name in self.tensors and self.tensors[name].shape == size:
            return name
        found = [k for k, t in self.tensors.items() if t.shape == size and fits(name, k)]
        return found[0] if len(found) == 1 else None


def feed(file: Any, count: int, *hashes: Any) -> None:
    """Read `count` bytes and give them to every hash."""
    while count > 0:
        data = file.read(min(CHUNK, count))
        if not data:
            return
        for one in hashes:
            one.update(data)
        count -= len(data)


def fits(name: str, key: str) -> bool:
    """Whether one name is the other behind a prefix."""
    return name.endswith("." + key) or key.endswith("." + name)


def nearest(name: str, keys: Collection[str]) -> str:
    """Of tensors with the same content, the one whose name fits best."""
    return next((k for k in keys if fits(name, k)), next(iter(keys)))


def fill_buffers(model: nn.Module, stored: StoredWeights) -> None:
    """Give persistent buffers what the files hold for them: statistics, position ids."""
    saved = model.state_dict(keep_vars=True)
    for name, buffer in list(model.named_buffers()):
        key = stored.same_name(name, buffer.shape) if name in saved else None
        if key is not None:
            parent = model.get_submodule(name.rpartition(".")[0])
            value = stored.tensors[key].read().to(buffer.dtype)
            parent._buffers[name.rpartition(".")[2]] = value


def digest(tensor: Tensor, name: str, stored: StoredWeights | None = None) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes; of a fake one, that of the file's tensor."""
    if not has_numbers(tensor):
        return stored.digest(name) if stored is not None else ""
    data = tensor.detach().cpu().contiguous()
    result = hashlib.sha256(f"{data.dtype}{list(data.shape)}".encode())
    result.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def stored_of(program: Program) -> StoredWeights | None:
    """Where the frozen weights of a graph are on disk, where that is known."""
    return program.meta.get(STORED)


def own_copy(program: Program, name: str) -> Tensor:
    """The weight called `name` in memory of its own, read from disk where the graph's is fake.

    Raises:
        PeftcError: E315 where the graph was captured without weights and no file has this one.
    """
    value = attribute(program, name).detach()
    if not isinstance(value, FakeTensor):
        return value.clone()
    stored = stored_of(program)
    place = stored.get(name) if stored is not None else None
    if place is None:
        raise error(
            "E315",
            f"the numbers of {name} are needed, and the graph was captured without weights",
            help=("load the model with its weights",),
        )
    return place.read().to(value.dtype)
