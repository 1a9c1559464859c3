"""The lock of an artifact: the pydantic models of `peftc.lock.json`, and its reading."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from peftc.ground.records import FileName, Record, Sha256, read_record

LOCK, TENSORS, SPEC = "peftc.lock.json", "peft.safetensors", "spec.yaml"
LOCK_FORMAT, OLDER = "1.1", "1.0"
# 1.0 had no hash of the spec, of buffers and tokenizer files, and no seal.
NEWER_FIELDS = ("buffers", "tokenizer")

Dtype = Literal["float64", "float32", "float16", "bfloat16"]
# The name of a kernel in transformers; one with a slash would be code of the hub's.
Attention = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")]


class StoredTensor(Record):
    """One tensor of `peft.safetensors`."""

    dtype: str
    shape: list[NonNegativeInt]
    finite: bool = True  # whether no number of it was infinite or none when it was saved


class Buffer(Record):
    """A tensor of the base that is no parameter, such as the frequencies of rotary positions.

    `sample` are numbers of it at even distances, all of them where they are few: devices compute
    the last digits differently, and what differs in no more is the same buffer.
    """

    sha256: Sha256
    dtype: str
    shape: list[NonNegativeInt]
    sample: list[float] | None


class Base(Record):
    """The base model: where it is, how it is loaded, and what is in it."""

    reference: str | None
    class_name: str = Field(alias="class")
    random_weights: bool
    static_length: PositiveInt | None
    commit: str | None
    dtype: Dtype
    config: dict[str, Any]
    attn_implementation: Attention | None
    weights: dict[str, Sha256]
    buffers: dict[str, Buffer] | None = None
    tokenizer: dict[FileName, Sha256] | None = None


class ImportedFrom(Record):
    """The checkpoint of another library that the artifact was imported from."""

    kind: str
    config: dict[str, Any]
    keys: dict[str, str]
    same: dict[str, str]
    dtypes: dict[str, Dtype]


class Lock(Record):
    """Everything that `peft.safetensors` and `spec.yaml` are good for only together with.

    `sha256` has every file of the folder that is written with it.
    """

    format_version: Literal["1.0", "1.1"]
    model: Base
    seed: int
    versions: dict[str, str]
    tensors: dict[str, StoredTensor]
    sha256: dict[FileName, Sha256]
    graph_sha256: Sha256
    plan: dict[str, Any]
    origin: ImportedFrom | None = None
    seal: Sha256 | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {TENSORS} if self.older else {TENSORS, SPEC}
        if missing := sorted(needed - self.sha256.keys()):
            raise ValueError(f"sha256 has no {', '.join(missing)}")
        newer = [getattr(self.model, n) is not None for n in NEWER_FIELDS]
        newer.append(self.seal is not None)
        if any(newer) if self.older else not all(newer):
            raise ValueError(f"these are not the values of format {self.format_version}")
        return self

    @property
    def older(self) -> bool:
        """Whether it is of the format that says less of the base and nothing of the spec."""
        return self.format_version == OLDER


def read_lock(folder: Path) -> Lock:
    """The lock of an artifact folder.

    Raises:
        PeftcError: E308 where the folder is no artifact, E303 where its lock is damaged, E320
            where a value of it was changed.
    """
    formats = (OLDER, LOCK_FORMAT)
    make = "peftc apply SPEC MODEL -o DIR"
    return read_record(folder / LOCK, Lock, "peftc artifact", make, formats)
