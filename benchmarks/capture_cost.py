"""What capture and surgery cost beside torch.export alone, and how they grow with depth.

    python benchmarks/capture_cost.py     # writes docs/capture-cost.md

Both are measured on meta tensors, in turn, nine times; the table has the median and the spread of
the ratio. Growth is the time of analysis, planning and rewriting at 2, 32 and 128 layers.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, LlamaConfig

import peftc
from peftc.capture import capture
from peftc.capture.inputs import example_for
from peftc.capture.trace import quiet, tracing_state

TABLE = Path(__file__).parents[1] / "docs" / "capture-cost.md"
ROUNDS = 9


def bert(layers: int) -> Any:
    """A BERT of the base width."""
    return AutoModelForMaskedLM.from_config(BertConfig(num_hidden_layers=layers))


def llama(layers: int) -> Any:
    """A Llama of a small width."""
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=4,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def on_meta(make: Callable[[int], Any], layers: int) -> Any:
    """A model without data."""
    with torch.device("meta"):
        return make(layers).eval()


def export_alone(model: Any) -> None:
    """torch.export with free batch and length, and no step more."""
    example = example_for(model)
    shapes = {
        i.name: {k: Dim.DYNAMIC for k, d in enumerate(i.dims) if isinstance(d, str)}
        for i in example.inputs
    }
    values = {n: v.to("meta") for n, v in example.values.items()}
    with tracing_state(model), quiet(), torch.no_grad():
        torch.export.export(model, (), values, dynamic_shapes=shapes, strict=False)


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and write the table."""
    warnings.simplefilter("ignore")
    lines = [
        "# What capture and surgery cost", "",
        f"torch {torch.__version__}, meta tensors, {ROUNDS} rounds in turn; "
        "written by `benchmarks/capture_cost.py`.", "",
        "| model | torch.export | capture, plan and rewrite (houlsby) | ratio | from to |",
        "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, make, layers in (("BERT, 12 layers", bert, 12), ("Llama, 16 layers", llama, 16)):
        model = on_meta(make, layers)
        export_alone(model)
        pairs = []
        for _ in range(ROUNDS):
            alone = seconds(lambda m=model: export_alone(m))
            whole = seconds(lambda m=model: peftc.apply("houlsby", m))
            pairs.append((alone, whole))
        ratios = sorted(w / a for a, w in pairs)
        lines.append(
            f"| {name} | {statistics.median(a for a, _ in pairs):.1f} s "
            f"| {statistics.median(w for _, w in pairs):.1f} s "
            f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "", "| layers (BERT) | analysis, plan and rewrite | for each layer |", "|---:|---:|---:|",
    ]  # fmt: skip
    for layers in (2, 32, 128):
        program = capture(on_meta(bert, layers))
        taken = min(seconds(lambda p=program: peftc.apply("houlsby", p)) for _ in range(3))
        lines.append(f"| {layers} | {taken:.2f} s | {1000 * taken / layers:.1f} ms |")
        print(lines[-1], flush=True)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
