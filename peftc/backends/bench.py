"""An exported file beside its frozen base, in the same format: latency and memory, as ratios."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftc.backends.base import Exported, backend
from peftc.backends.export import export, read_export
from peftc.backends.process import last_words
from peftc.backends.weights import base_files
from peftc.capture.inputs import example_value
from peftc.capture.program import STORED, Input, Program
from peftc.ground.diagnostics import error
from peftc.ground.output.staging import room_in
from peftc.rewrite.applied import APPLIED, Applied

SCRIPT = Path(__file__).parent / "runners" / "run_bench.py"
ROUNDS, WARM_UP = 60, 5
IDS = 90  # token ids below this: every vocabulary has them


@dataclass(frozen=True)
class Timing:
    """One size: median milliseconds of both, and the median ratio of neighbouring calls.

    `low` and `high` are the quartiles of these ratios; `least` is the ratio of the shortest calls
    and `cpu` the median ratio of processor time, which other work on the machine disturbs less.
    """

    batch: int
    length: int
    base_ms: float
    ms: float
    ratio: float
    low: float
    high: float
    least: float
    cpu: float


@dataclass(frozen=True)
class Memory:
    """Bytes of a process that loaded a file and ran it: private ones, the peak, a GPU's."""

    base_files: int
    files: int
    base: dict[str, int]
    own: dict[str, int]


@dataclass(frozen=True)
class Bench:
    """The cost of an exported file relative to its frozen base."""

    kind: str
    file: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]
    memory: Memory

    def to_json(self) -> dict[str, Any]:
        """The figures as data."""
        return asdict(self)


def bench(
    base: Program | str | Path,
    folder: str | Path,
    *,
    batches: Sequence[int] = (1, 16),
    lengths: Sequence[int] = (64,),
    threads: int = 1,
    rounds: int = ROUNDS,
) -> Bench:
    """Time the exported file in `folder` against its frozen base, in the same format.

    `base` is the graph that was exported, whose base is then exported in the same way to a
    temporary folder, or an export of the base. Both run in one process that imports neither
    peftc nor transformers (but for "hf"), their calls alternating; memory is measured in a
    process for each.

    Raises:
        PeftcError: E303 for a damaged file, E412 where a file cannot be run, the two differ in
            format, or the graph has no base.
    """
    exported = read_export(folder)
    target = backend(exported.kind)
    target.check_installed()
    if target.merges is False:
        raise error(
            "E412",
            f"{exported.folder} holds pieces without a model, which nothing runs alone",
            help=("bench an export to onnx, torchscript, aoti or hf",),
        )
    # Beside the export: its base's weights can be linked there if its own are.
    with room_in(exported.folder.resolve().parent) as place:
        if isinstance(base, Program):
            base = export_base(base, exported, place / "base")
        other = read_export(base)
        if other.kind != exported.kind:
            raise error(
                "E412",
                f"{other.folder} is of format {other.kind}, {exported.folder} of {exported.kind}",
                help=("export both in the same format",),
            )
        settings = {"threads": threads, "rounds": rounds, "warm_up": WARM_UP}
        sizes = [(b, n) for n in lengths for b in batches]
        given = [inputs_at(exported, b, n) for b, n in sizes]
        taken = measured([other, exported], given, settings, place)["seconds"]
        alone = {**settings, "rounds": 1}
        used = [measured([e], given, alone, place)["memory"] for e in (other, exported)]
        files = size_of(other), size_of(exported)
    timings = tuple(timing(*size, *taken[str(k)]) for k, size in enumerate(sizes))
    return Bench(exported.kind, exported.file, threads, rounds, timings, Memory(*files, *used))


def export_base(graph: Program, exported: Exported, out: Path) -> Path:
    """The frozen base of `graph` in the format of `exported`, its weights where those are."""
    applied: Applied | None = graph.meta.get(APPLIED)
    if applied is None:
        raise error("E412", "a graph that no spec was applied to is its own base")
    base, weights = applied.base, exported.facts["weights"]
    if weights == "link" and STORED not in base.meta:
        base = base.clone()
        base.meta[STORED] = base_files(graph)
    weights = weights if backend(exported.kind).links else None
    export(base, exported.kind, out, opset=exported.facts["opset"], weights=weights)
    return out


def measured(
    files: Sequence[Exported],
    given: Sequence[dict[str, np.ndarray]],
    settings: dict[str, int],
    place: Path,
) -> dict[str, Any]:
    """What the script says about these files at these inputs."""
    inputs, options = place / "inputs.npz", place / "settings.json"
    arrays = {f"{k}/{n}": v for k, values in enumerate(given) for n, v in values.items()}
    np.savez(inputs, **arrays)  # type: ignore[arg-type]
    options.write_text(json.dumps(settings), encoding="utf-8")
    models = [str((e.folder / e.file).resolve()) for e in files]
    command = [sys.executable, "-P", str(SCRIPT), str(backend(files[0].kind).runner), *models]
    done = subprocess.run([*command, str(inputs), str(options)], capture_output=True, text=True)
    if done.returncode != 0:
        raise error(
            "E412",
            f"{files[-1].folder / files[-1].file} cannot be timed",
            notes=(last_words(done)[:300],),
            help=("`peftc verify` says whether it runs", "a smaller --batch or --length"),
        )
    return json.loads(done.stdout.splitlines()[-1])


def timing(batch: int, length: int, base: list[Any], own: list[Any]) -> Timing:
    """The figures of one size from (seconds, processor seconds) of every call."""
    ratios = sorted(b[0] / a[0] for a, b in zip(base, own, strict=True))
    busy = statistics.median(b[1] / a[1] for a, b in zip(base, own, strict=True))
    base_s, own_s = [a[0] for a in base], [b[0] for b in own]
    quarter = len(ratios) // 4
    return Timing(
        batch, length, 1e3 * statistics.median(base_s), 1e3 * statistics.median(own_s),
        statistics.median(ratios), ratios[quarter], ratios[-1 - quarter],
        min(own_s) / min(base_s), busy,
    )  # fmt: skip


def inputs_at(exported: Exported, batch: int, length: int) -> dict[str, np.ndarray]:
    """Inputs of one size, as the export describes them, without padding."""
    sizes = {
        "batch": batch,
        "sequence": length,
        "decoder_sequence": length,
        "samples": 400 * length,
    }
    values = {}
    for one in exported.facts["inputs"]:
        dtype = getattr(torch, one["dtype"])
        described = Input(one["name"], dtype, tuple(one["dims"]), one["default"])
        value = example_value(described, sizes, IDS)
        values[one["name"]] = (value | 1 if one["default"] == "ones" else value).numpy()
    return values


def size_of(exported: Exported) -> int:
    """The bytes of an export's files."""
    return sum((exported.folder / n).stat().st_size for n in exported.files)
