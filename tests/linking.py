"""Artifacts over bases of one layer on disk, loaded without their weights, for export tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import reference
import zoo

import peftc


@functools.cache
def home() -> Path:
    """A folder for the whole test session."""
    return Path(tempfile.mkdtemp(prefix="peftc-linking-"))


def model(kind: str, task: str) -> Any:
    """The zoo's model with one layer in each stack."""
    return zoo.model(kind, task, 1)


def captured(kind: str, task: str) -> Any:
    """The capture of `model`, which `apply` leaves as it is."""
    return zoo.captured(kind, task, 1)


@functools.cache
def base(kind: str, task: str, shards: bool) -> Path:
    """`model` as `save_pretrained` writes it, in one file or in several."""
    folder = home() / f"{kind}-{task}-{shards}"
    size = "12KB" if shards else "1GB"
    model(kind, task).save_pretrained(folder, max_shard_size=size)
    return folder


@functools.cache
def artifact(kind: str, task: str, spec: str, shards: bool) -> tuple[Any, Path]:
    """(graph with weights, its folder): random pieces over `base`."""
    settings = {"tokens": 5} if spec in ("prefix", "prompt") else {}
    graph = peftc.apply(spec, captured(kind, task), set=settings)
    graph.meta["peftc.applied"].reference = str(base(kind, task, shards))
    reference.randomise(graph)
    return graph, peftc.save(graph, home() / f"{kind}-{task}-{spec}-{shards}-artifact")


@functools.cache
def weightless(kind: str, task: str, spec: str, shards: bool) -> Any:
    """The artifact's graph, captured without reading the base into memory."""
    return peftc.load(artifact(kind, task, spec, shards)[1], weights=False)


@functools.cache
def linked(kind: str, task: str, spec: str, shards: bool) -> Any:
    """Its export over the base's own files, nothing merged."""
    out = home() / f"{kind}-{spec}-linked"
    return peftc.export(weightless(kind, task, spec, shards), "onnx", out, fold="none")
