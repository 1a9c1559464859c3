"""Where an exported graph's weights lie: in the base's own files, or in safetensors beside it."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from peftc.artifact.base import weight_hashes
from peftc.capture.fake import has_numbers
from peftc.capture.program import STORED, Program
from peftc.capture.stored import CHUNK, Stored, StoredWeights, own_copy
from peftc.capture.weight_files import DTYPES, read_header, stored_weights
from peftc.ground.diagnostics import error
from peftc.passes.base import DEFERRED, set_parameter
from peftc.rewrite.applied import APPLIED, Applied

BASE, PEFT = "model.safetensors", "peft.safetensors"
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Source:
    """The bytes of one tensor to be written: from a file, or made when they are asked for."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    give: Stored | Callable[[], Tensor]

    @property
    def length(self) -> int:
        """How many bytes they are."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def parts(self) -> Iterator[bytes | memoryview]:
        """The bytes, a file's in small parts."""
        if isinstance(self.give, Stored):
            with open(self.give.file, "rb") as file:
                file.seek(self.give.offset)
                left = self.give.length
                while left and (data := file.read(min(CHUNK, left))):
                    left -= len(data)
                    yield data
            return
        value = self.give().detach().contiguous().cpu()
        if value.numel():
            yield value.reshape(-1).view(torch.uint8).numpy().data


def write(path: Path, sources: Mapping[str, Source]) -> dict[str, Stored]:
    """Write a safetensors file, one tensor after the other; where each now lies.

    No more than one tensor is in memory. Wide dtypes come first, so that all are aligned.
    """
    order = sorted(sources, key=lambda n: -sources[n].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        one = sources[name]
        header[name] = {
            "dtype": CODES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [end, end + one.length],
        }
        end += one.length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in order:
            for part in sources[name].parts():
                file.write(part)
    return read_header(path)


@contextmanager
def standing_in(files: Collection[Path], folder: Path) -> Iterator[None]:
    """Empty files of the base's sizes in `folder`, for a checker that refuses hard links."""
    made = [folder / p.name for p in files]
    try:
        for path, place in zip(files, made, strict=True):
            with open(place, "wb") as file:
                file.truncate(path.stat().st_size)
        yield
    finally:
        for place in made:
            place.unlink(missing_ok=True)


def link(files: Collection[Path], folder: Path) -> None:
    """Give `folder` the base's own files, as hard links: no byte is copied.

    Raises:
        PeftcError: E410 where the file system cannot.
    """
    for path in sorted(files):
        try:
            os.link(path.resolve(), folder / path.name)
        except OSError as cause:
            raise not_linkable(path, cause) from cause


def not_linkable(path: Path, cause: OSError) -> Exception:
    """E410: the base's file cannot be in the output folder without a copy."""
    other = cause.errno == errno.EXDEV
    why = "the output is on another file system" if other else os.strerror(cause.errno or 0)
    return error(
        "E410",
        f"{path} cannot be linked: {why}",
        help=("--out on the disk of the base", "--weights copy writes the weights once more"),
    )


def linkable(stored: StoredWeights, out: Path) -> bool:
    """Whether `out`, which need not exist yet, is on the file system of the base's files."""
    out = Path(out).absolute()
    while not out.exists():
        out = out.parent
    return all(p.stat().st_dev == out.stat().st_dev for p in stored.files)


def base_files(graph: Program) -> StoredWeights | None:
    """The safetensors files that hold a graph's frozen weights; None where no file does.

    A graph with its weights in memory is compared with the files that it was loaded from.
    """
    if (stored := graph.meta.get(STORED)) is not None:
        return stored
    applied: Applied | None = graph.meta.get(APPLIED)
    if applied is None or applied.reference is None:
        return None
    commit = getattr(graph.signature.config, "_commit_hash", None)
    stored = stored_weights(applied.reference, commit)
    if stored is not None:
        stored.match(weight_hashes(graph))
    return stored if stored is not None and stored.names else None


def in_place(program: Program, graph: Program, stored: StoredWeights) -> dict[str, Stored]:
    """Where the files hold weights of `program`, by name: those that no pass changed."""
    before, waiting = dict(graph.named_parameters()), program.meta.get(DEFERRED, {})
    places = {}
    for name, parameter in program.named_parameters():
        place = stored.get(name)
        if place is None or name in waiting or before.get(name) is not parameter:
            continue
        if place.dtype == parameter.dtype:
            places[name] = place
    return places


def fill(program: Program) -> None:
    """Read every fake weight of `program` from the base's files."""
    for name, parameter in list(program.named_parameters()):
        if not has_numbers(parameter):
            set_parameter(program, name, own_copy(program, name))
