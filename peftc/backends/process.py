"""Running an exported file with its own runtime, in a process that has nothing of this package."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peftc.backends.base import Exported, backend
from peftc.capture.program import Program
from peftc.ground.diagnostics import error

SCRIPT = Path(__file__).parent / "runners" / "run_cases.py"


def run(
    exported: Exported,
    cases: dict[str, np.ndarray],
    count: int,
    keys: Sequence[str],
    graph: Program | None = None,
) -> list[list[Tensor]]:
    """The outputs called `keys` of the file for every case, from a process of its own.

    Raises:
        PeftcError: E406 where the runtime cannot run it.
    """
    target = backend(exported.kind)
    with tempfile.TemporaryDirectory(prefix="peftc-verify-") as folder:
        inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(inputs, **cases)  # type: ignore[arg-type]
        # -P: the script's own folder is not on its path.
        files = (str(target.runner), exported.file, str(inputs), str(outputs))
        more = target.arguments(graph, Path(folder)) if graph is not None else ()
        command = [sys.executable, "-P", str(SCRIPT), *files, *more]
        done = subprocess.run(command, cwd=exported.folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise error(
                "E406",
                f"{exported.folder / exported.file} does not run",
                notes=(last_words(done)[:300],),
                help=("export again, with another --opset for ONNX",),
            )
        with np.load(outputs) as file:
            flat = count and f"0/{keys[0]}" in file.files
            return [
                [torch.from_numpy(file[f"{k}/{n if flat else j}"]) for j, n in enumerate(keys)]
                for k in range(count)
            ]


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended: the signal that ended it, or the last line that it printed."""
    if done.returncode < 0:
        return f"its process ended by {signal.Signals(-done.returncode).name}"
    lines = [t for t in done.stderr.splitlines() if t.strip()]
    return lines[-1] if lines else f"its process ended with {done.returncode}, saying nothing"
