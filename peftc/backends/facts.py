"""The pydantic models of `peftc.export.json`, which says what an export is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeInt

from peftc.artifact.lock import Dtype
from peftc.ground.records import FileName, Record, Sha256

Dims = list[NonNegativeInt | str]


class Takes(Record):
    """One input."""

    name: str
    dims: Dims
    dtype: Dtype | Literal["int64", "int32", "bool"]
    default: Literal["ones", "zeros"] | None


class Gives(Record):
    """One output."""

    name: str
    dims: Dims


class File(Record):
    """What a file is recognised by."""

    bytes: NonNegativeInt
    fingerprint: str
    sha256: Sha256


class Facts(Record, extra="allow"):
    """An export; a later release may say more of one, which this one has no use for."""

    format_version: Literal["1.0"]
    kind: str
    file: FileName
    fold: str
    device: str = "cpu"
    dtype: Dtype
    weights: Literal["link", "copy"]
    session: dict[str, Any]
    inputs: list[Takes]
    outputs: list[Gives]
    peft: list[str]
    files: dict[FileName, File]
    versions: dict[str, str]
