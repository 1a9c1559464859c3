"""Artifacts over tiny bases on disk, loaded without their weights, for the export tests."""

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


@functools.cache
def base(kind: str, task: str, shards: bool = False) -> Path:
    """The zoo's model as `save_pretrained` writes it, in one file or in several."""
    folder = home() / f"{kind}-{task}-{shards}"
    size = "30KB" if shards else "1GB"
    zoo.model(kind, task).save_pretrained(folder, max_shard_size=size)
    return folder


@functools.cache
def artifact(kind: str, task: str, spec: str, shards: bool = False) -> tuple[Any, Path]:
    """(graph with weights, its folder): random pieces over `base`."""
    settings = {"tokens": 5} if spec in ("prefix", "prompt") else {}
    graph = peftc.apply(spec, zoo.captured(kind, task), set=settings)
    graph.meta["peftc.applied"].reference = str(base(kind, task, shards))
    reference.randomise(graph)
    return graph, peftc.save(graph, home() / f"{kind}-{task}-{spec}-{shards}-artifact")


@functools.cache
def weightless(kind: str, task: str, spec: str, shards: bool = False) -> Any:
    """The artifact's graph, captured without reading the base into memory."""
    return peftc.load(artifact(kind, task, spec, shards)[1], weights=False)
