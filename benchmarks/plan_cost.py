"""What a plan of Llama-3-8B costs, from a folder with nothing but its config.json.

    python benchmarks/plan_cost.py     # writes docs/plan-cost.md

Each plan is a command of its own: seconds of the processor, and the peak of its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs" / "plan-cost.md"
SPECS = ("lora", "houlsby")
LLAMA_3_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256,
    "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def planned(spec: str, folder: Path) -> tuple[dict[str, int], float, float]:
    """(parameters, seconds of the processor, peak memory in MB) of `peftc plan spec folder`."""
    command = [sys.executable, "-m", "peftc.cli.main", "plan", spec, str(folder), "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    text = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return json.loads(text)["parameters"], used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def main() -> None:
    """Measure and write the table."""
    lines = [
        "# What a plan costs", "",
        "Llama-3-8B from its `config.json` alone, each plan a command of its own, imports",
        "included; written by `benchmarks/plan_cost.py`.", "",
        "| spec | parameters of the model | inserted | processor | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA_3_8B), encoding="utf-8")
        for spec in SPECS:
            counts, seconds, peak = planned(spec, Path(folder))
            lines.append(
                f"| {spec} | {counts['base']:,} | {counts['inserted']:,} | {seconds:.0f} s "
                f"| {peak:.0f} MB |"
            )
            print(lines[-1], flush=True)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
