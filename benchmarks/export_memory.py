"""What exporting a large model takes in memory, and what its linked export adds to a server.

    nice -n 15 python benchmarks/export_memory.py     # writes docs/export-memory.md

Makes a Llama of 1.2 billion parameters with random weights, in bfloat16 and in float32, and one of
8 billion whose file is sparse, each with an artifact of LoRA beside it, in a temporary folder that
needs 8 GB. Peak memory is the largest resident set of `peftc export` and of the processes that it
starts, imports included. What a server pays is measured in a fresh process: private memory that
`peftc.runtime.Session` adds, at loading and after one run.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

import peftc
from peftc.backends.weights import Source, write
from peftc.capture import capture
from peftc.capture.load import load_model
from peftc.capture.program import STORED
from peftc.capture.weight_files import stored_weights
from peftc.rewrite.applied import APPLIED

TABLE = Path(__file__).parents[1] / "docs" / "export-memory.md"
NEEDED = 10e9  # bytes of free disk
SIZES: dict[str, dict[str, Any]] = {
    "1.2": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "tie_word_embeddings": True,
    },
    "8.0": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False,
    },
}  # fmt: skip
SERVER = """
import json, sys
from pathlib import Path
import numpy, onnxruntime
from peftc.runtime import Session

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kinds = {t.split(":")[0]: int(t.split()[1]) for t in lines if t.startswith("Private")}
    return kinds["Private_Dirty"] * 1024

before = private()
session = Session(sys.argv[1])
loaded = private()
session(input_ids=numpy.arange(8).reshape(1, 8) + 5)
print(json.dumps([loaded - before, private() - before]))
"""


@dataclass(frozen=True)
class Row:
    """One model as it was exported."""

    name: str
    dtype: str
    base: int
    weights: str
    peak: int
    own: int
    loaded: int | None
    ran: int | None


def make_base(folder: Path, size: str, dtype: torch.dtype, sparse: bool) -> None:
    """A Llama's config and its safetensors file: random numbers, or a file of zeros with holes."""
    folder.mkdir(parents=True)
    config = LlamaConfig(vocab_size=128_256, max_position_embeddings=131_072, **SIZES[size])
    config.architectures, config.dtype = ["LlamaForCausalLM"], dtype
    config.save_pretrained(folder)
    model = load_model(folder, fake=True)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    path = folder / "model.safetensors"
    if not sparse:
        made = {
            n: Source(dtype, s, lambda s=s: torch.randn(s, dtype=dtype) * 0.02)
            for n, s in shapes.items()
        }
        write(path, made)
        return
    header, end = {}, 0
    for name, shape in shapes.items():
        length = dtype.itemsize * torch.Size(shape).numel()
        code = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def make_artifact(base: Path, folder: Path) -> None:
    """LoRA over the base, its weights never loaded."""
    model, stored = load_model(base, fake=True), stored_weights(base)
    assert stored is not None
    program = capture(model)
    for name, parameter in program.named_parameters():
        alike = (k for k, t in stored.tensors.items() if t.shape == tuple(parameter.shape))
        # A tied weight is in the file under its other name: the only tensor of its shape.
        stored.names[name] = stored.same_name(name, parameter.shape) or next(alike)
    program.meta[STORED] = stored
    graph = peftc.apply("lora", program)
    graph.meta[APPLIED].reference = str(base)
    peftc.save(graph, folder)


def exported(artifact: Path, out: Path, *options: str) -> int:
    """The peak of `peftc export`, in bytes."""
    command = [sys.executable, "-m", "peftc.cli.main", "export", str(artifact), "--to", "onnx"]
    process = subprocess.Popen([*command, "-o", str(out), *options])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"export ended with {status}")
    return usage.ru_maxrss * 1024


def served(out: Path) -> tuple[int, int]:
    """Private bytes that a session adds: loaded, and after one run."""
    command = [sys.executable, "-c", SERVER, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, ran = json.loads(done.stdout)
    return loaded, ran


def measure(home: Path, size: str, dtype: torch.dtype, *, sparse: bool) -> list[Row]:
    """The rows of one model; its files are removed afterwards."""
    name, kind = f"Llama, {size} billion", str(dtype).removeprefix("torch.")
    base = home / "base"
    # A process starts with the peak of the one that forked it, so this one stays small.
    run_alone("make_base", base, size, dtype, sparse)
    run_alone("make_artifact", base, home / "artifact")
    rows = []
    for weights, options in (
        ("link, unmerged", ["--weights", "link", "--fold", "unmerged"]),
        ("link, merged", ["--weights", "link"]),
    ):
        out = home / "out"
        peak = exported(home / "artifact", out, *options)
        own = sum(p.stat().st_size for p in out.iterdir() if p.stat().st_nlink == 1)
        # ONNX Runtime's CPU kernels have no bfloat16; a sparse file would fill memory with zeros.
        memory = served(out) if kind == "float32" and not sparse else (None, None)
        total = (base / "model.safetensors").stat().st_size
        rows.append(Row(name, kind, total, weights, peak, own, *memory))
        print(rows[-1], flush=True)
        shutil.rmtree(out)
    for folder in (base, home / "artifact"):
        shutil.rmtree(folder)
    return rows


def run_alone(function: str, *arguments: Any) -> None:
    """Call a function of this file in a process of its own, so that its memory is returned."""
    given = ", ".join(map(repr, arguments))
    start = "import torch; from pathlib import PosixPath; import export_memory"
    code = f"{start}; export_memory.{function}({given})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def table(rows: list[Row]) -> str:
    """The page."""
    import onnxruntime

    def mb(count: int | None) -> str:
        return "" if count is None else f"{count / 1e6:,.0f} MB"

    lines = [
        "# What exporting takes",
        "",
        f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, CPU; written by "
        "`benchmarks/export_memory.py`.",
        "",
        "`peftc export` of a LoRA artifact to ONNX. The peak is the largest resident set of the",
        "whole command, imports included. The files written are all but the linked base. A server",
        "pays what `peftc.runtime.Session` adds to its private memory.",
        "",
        "| model | base file | weights | peak | written | server, loaded | after a run |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.name}, {r.dtype} | {r.base / 1e9:.2f} GB | {r.weights} | {mb(r.peak)} "
            f"| {mb(r.own)} | {mb(r.loaded)} | {mb(r.ran)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all three and write the table."""
    with tempfile.TemporaryDirectory(prefix="peftc-export-memory-") as place:
        home = Path(place)
        if shutil.disk_usage(home).free < NEEDED:
            raise SystemExit(f"{home} has less than {NEEDED / 1e9:.0f} GB free")
        rows = measure(home, "1.2", torch.bfloat16, sparse=False)
        rows += measure(home, "1.2", torch.float32, sparse=False)
        rows += measure(home, "8.0", torch.bfloat16, sparse=True)
    TABLE.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
