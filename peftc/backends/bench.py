"""An exported file beside its frozen base, in the same format: latency and memory, as ratios."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftc.backends.base import Exported, backend
from peftc.backends.export import export, read_export
from peftc.capture.inputs import example_value
from peftc.capture.program import Input, Program
from peftc.diagnostics import error

SCRIPT = Path(__file__).parent / "runners" / "run_bench.py"
ROUNDS, WARM_UP = 60, 5
IDS = 90  # token ids below this: every vocabulary has them


@dataclass(frozen=True)
class Timing:
    """One size: median milliseconds of both, and the ratio of medians with its spread.

    `low` and `high` are the quartiles of the ratios of neighbouring calls, `least` the ratio of
    the shortest calls, which other work on the machine disturbs least.
    """

    batch: int
    length: int
    base_ms: float
    ms: float
    ratio: float
    low: float
    high: float
    least: float


@dataclass(frozen=True)
class Memory:
    """Bytes of a process that loaded a file and ran it: private ones and the peak, both files."""

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
    """Time the exported file in `folder` against `base`: a frozen graph, or an export of one.

    A graph is exported in the same format to a temporary folder first. Both run in one process
    that imports neither peftc nor transformers (but for `hf`), their calls alternating; memory
    is measured in a process for each.

    Raises:
        PeftcError: E303 for a damaged file, E410 where a file cannot be run or the two differ in
            format.
    """
    exported = read_export(folder)
    backend(exported.kind).check_installed()
    with tempfile.TemporaryDirectory(prefix="peftc-bench-") as temporary:
        if isinstance(base, Program):
            frozen = Path(temporary, "base")
            weights = exported.facts["weights"] if exported.facts["weights"] == "copy" else None
            export(base, exported.kind, frozen, opset=exported.facts["opset"], weights=weights)
            base = frozen
        other = read_export(base)
        if other.kind != exported.kind:
            raise error(
                "E410",
                f"{other.folder} is of format {other.kind}, {exported.folder} of {exported.kind}",
                help=("export both in the same format",),
            )
        settings = {"threads": threads, "rounds": rounds, "warm_up": WARM_UP}
        sizes = [(b, n) for n in lengths for b in batches]
        given = [inputs_at(exported, b, n) for b, n in sizes]
        place = Path(temporary)
        taken = measured([other, exported], given, settings, place)["seconds"]
        alone = {**settings, "rounds": 1}
        used = [measured([e], given, alone, place)["memory"] for e in (other, exported)]
    timings = tuple(timing(*size, *taken[str(k)]) for k, size in enumerate(sizes))
    memory = Memory(size_of(other), size_of(exported), *used)
    return Bench(exported.kind, exported.file, threads, rounds, timings, memory)


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
        last = [t for t in done.stderr.splitlines() if t.strip()][-1:]
        raise error(
            "E410",
            f"{files[-1].folder / files[-1].file} cannot be timed",
            notes=tuple(t[:300] for t in last),
            help=("`peftc verify` says whether it runs", "a smaller --batch or --length"),
        )
    return json.loads(done.stdout.splitlines()[-1])


def timing(batch: int, length: int, base: list[float], own: list[float]) -> Timing:
    """The figures of one size from the seconds of every call."""
    ratios = sorted(b / a for a, b in zip(base, own, strict=True))
    middle, other = statistics.median(own), statistics.median(base)
    quarter = len(ratios) // 4
    return Timing(
        batch, length, 1e3 * other, 1e3 * middle, middle / other,
        ratios[quarter], ratios[-1 - quarter], min(own) / min(base),
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
