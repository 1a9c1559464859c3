"""The safetensors files of a model: which they are, and what is where in them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

from peftc.capture.stored import Stored, StoredWeights
from peftc.ground.diagnostics import error

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def stored_weights(source: str | Path, revision: str | None = None) -> StoredWeights | None:
    """The weights of a model folder, or of a hub name in the local cache; None without any.

    Raises:
        PeftcError: E303 for a damaged file.
    """
    files = files_of(source, revision)
    tensors: dict[str, Stored] = {}
    for path in files:
        tensors |= read_header(path)
    return StoredWeights(tuple(files), tensors) if files else None


def located(source: str | Path, name: str, revision: str | None = None) -> Path | None:
    """A file of a model folder, or of a hub name in the local cache; None where it is not there."""
    if Path(source).is_dir():
        found: str | Path | None = Path(source) / name
    else:
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(
                str(source), name, revision=revision, local_files_only=True,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
            )  # fmt: skip
        except (OSError, ValueError):  # a folder that is gone is no hub name
            found = None
    return Path(found) if found is not None and Path(found).is_file() else None


def files_of(source: str | Path, revision: str | None) -> list[Path]:
    """The safetensors file of a model, or its shards; none where it has neither."""
    single, index = located(source, SINGLE, revision), located(source, INDEX, revision)
    if single is not None:
        return [single]
    if index is None:
        return []
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [index.parent / name for name in dict.fromkeys(shards)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise error("E303", f"{index} cannot be read: {cause}") from cause


def read_header(path: Path) -> dict[str, Stored]:
    """The header of a safetensors file: what is where.

    Raises:
        PeftcError: E303 where it is missing, is no safetensors file, or stops early.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError(f"its header should have {length:,} bytes, the file has {size:,}")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        result = {}
        for key, facts in header.items():
            first, last = facts["data_offsets"]
            dtype = DTYPES.get(facts["dtype"])
            result[key] = Stored(path, dtype, tuple(facts["shape"]), start + first, last - first)
        end = max((t.offset + t.length for t in result.values()), default=start)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise error(
            "E303", f"{path} cannot be read: {why}", help=("copy the model folder again",)
        ) from cause
    if end > size:
        raise error(
            "E303",
            f"{path} is damaged: it has {size:,} bytes, its header says {end:,}",
            help=("copy it again: a copy that stopped early looks like this",),
        )
    return result
