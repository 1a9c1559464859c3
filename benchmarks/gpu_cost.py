"""What pieces cost on a GPU: exported files beside their frozen base, training beside HF PEFT.

    python benchmarks/gpu_cost.py             # measures what is missing, on a CUDA device
    python benchmarks/gpu_cost.py train onnx  # of these only, in this order
    python benchmarks/gpu_cost.py --table     # writes docs/gpu-cost.md of what was measured

Files are of the encoder of `inference_cost.py`, float32, exported on the device, and timed by
`peftc.backends.bench`: base and model in one process, call by call in turn, each to its end.
Training is of a decoder of Llama-3.2-1B's shape (random weights, bfloat16), 16 rows of 512 tokens:
forward, backward and a step of AdamW over the pieces, the same loop for peftc and for HF PEFT,
whose pieces are kept in bfloat16 as well.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import inference_cost as encoder
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import peftc
from peftc.backends.bench import bench
from peftc.capture import capture
from peftc.rewrite.pipeline import fold

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "gpu_cost.jsonl"
TABLE = ROOT / "docs" / "gpu-cost.md"
BATCHES, ROUNDS = (1, 16, 256), 60
ROWS, LENGTH, WARM_UP, STEPS = 16, 512, 5, 30
KINDS = {
    "eager": "torch, eager",
    "peft": "HF PEFT, eager",
    "torchscript": "TorchScript",
    "aoti": "AOTInductor",
    "onnx": "ONNX Runtime, CUDA",
}
CASES = ("lora merged", "lora", "houlsby", "prefix")
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoRA on q and v, rank 8", {"rank": 8}),
    "houlsby": ("Houlsby adapters, bottleneck 64", {"dim": 64}),
    "prefix": ("prefix of 20, without an MLP", {"tokens": 20}),
}
JOBS = [
    *[(kind, case) for kind in KINDS if kind != "peft" for case in CASES],
    ("peft", "lora"),
    *[("train peftc", case) for case in TRAINED],
    *[("train peft", case) for case in ("lora", "prefix")],
]


def file_cost(kind: str, case: str, home: Path) -> dict[str, Any]:
    """The timings of one exported encoder, or of the graph itself, beside its base."""
    model, fold_of = encoder.base_model().to("cuda"), encoder.CASES[case][3]
    if kind == "peft":
        return in_eager(model, encoder.peft_lora(model))
    base = capture(model)
    graph = encoder.made(case, base)
    if kind == "eager":
        return in_eager(base, fold(graph, merge=fold_of == "auto")[0])
    if not (home / kind).is_dir():
        peftc.export(base, kind, home / kind, **copied(kind))
    out = home / f"{kind}-{case.replace(' ', '-')}"
    peftc.export(graph, kind, out, fold=fold_of, **copied(kind))
    found = bench(home / kind, out, batches=BATCHES, lengths=(encoder.LENGTH,), rounds=ROUNDS)
    return {"timings": [asdict(t) for t in found.timings]}


def in_eager(*models: Any) -> dict[str, Any]:
    """The timings of two models."""
    found = encoder.in_turn(*models, rounds=dict.fromkeys(BATCHES, ROUNDS), device="cuda")
    return {"timings": [asdict(t) for t in found]}


def copied(kind: str) -> dict[str, Any]:
    """Weights of its own, for a format that could link them."""
    return {"weights": "copy"} if kind == "onnx" else {}


def decoder() -> Any:
    """A decoder of Llama-3.2-1B's shape, in bfloat16 on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, intermediate_size=8192, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def with_pieces(system: str, case: str, model: Any) -> Any:
    """The model with pieces by peftc, or by HF PEFT."""
    if system == "peftc":
        sets = TRAINED[case][1]
        spec = {"prefix": "ptuning2"}.get(case, case)  # a prefix of its own in every layer
        return peftc.apply(spec, capture(model), set=sets)
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    if case == "lora":
        config: Any = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"]
        )
    else:
        config = PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM")
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def train_cost(system: str, case: str) -> dict[str, Any]:
    """Seconds of a training step, and the most memory that it took on the device."""
    graph = with_pieces(system, case, decoder()).train()
    trained = [p for p in graph.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    generator = torch.Generator("cuda").manual_seed(1)
    ids = torch.randint(5, 9000, (ROWS, LENGTH), generator=generator, device="cuda")
    mask = torch.ones_like(ids)
    mask[1:, -40:] = 0
    seconds = []
    for k in range(WARM_UP + STEPS):
        if k == WARM_UP:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        started = time.perf_counter()
        logits = graph(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds += [time.perf_counter() - started] if k >= WARM_UP else []
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {
        "trained": sum(p.numel() for p in trained),
        "ms": 1e3 * middle, "low": 1e3 * low, "high": 1e3 * high,
        "memory": torch.cuda.max_memory_allocated(),
    }  # fmt: skip


def measure(wanted: list[str]) -> None:
    """Run what has no result yet; a line for each job, as soon as it is done."""
    import transformers

    results = read()
    versions = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        for job, case in [j for w in wanted for j in JOBS if j[0].split()[0] == w] or JOBS:
            if (job, case) in results:
                continue
            started = time.perf_counter()
            try:
                train = job.startswith("train ")
                found = train_cost(job[6:], case) if train else file_cost(job, case, Path(home))
            except Exception as cause:  # the rest is measured all the same
                print(f"{job} {case}: {type(cause).__name__}: {str(cause)[:1500]}", flush=True)
                continue
            finally:
                gc.collect()  # models are cycles: one that lives on would count as the next one's
                torch.cuda.empty_cache()
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"job": job, "case": case, **found, **versions}) + "\n")
            brief = found.get("timings") and [round(t["ratio"], 3) for t in found["timings"]]
            taken = time.perf_counter() - started
            print(f"{job} {case}: {brief or found}, {taken:.0f} s", flush=True)


def read() -> dict[tuple[str, str], dict[str, Any]]:
    """The results by job and case."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {(r["job"], r["case"]): r for r in map(json.loads, lines)}


def gigabytes(count: int | None) -> str:
    """A number of bytes as text."""
    return "not measured" if count is None else f"{count / 1e9:.2f} GB"


def table(results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The document."""
    one = next(iter(results.values()))
    files = [
        f"| {KINDS[kind]} | {encoder.CASES[case][0]} | {t['batch']} | {t['base_ms']:.2f} ms "
        f"| {t['ratio']:.3f} | {t['low']:.3f} to {t['high']:.3f} |"
        for kind, case in JOBS
        if kind in KINDS and (kind, case) in results
        for t in results[kind, case]["timings"]
    ]
    trained = [
        f"| {TRAINED[case][0]} | {name} | {r['trained']:,} | {r['ms']:.1f} ms "
        f"| {r['low']:.1f} to {r['high']:.1f} | {ROWS * LENGTH / r['ms'] * 1e3:,.0f} "
        f"| {gigabytes(r.get('memory'))} |"
        for case in TRAINED
        for job, name in (("train peftc", "peftc"), ("train peft", "HF PEFT"))
        if (r := results.get((job, case)))
    ]
    section = [
        "## Exported files",
        "",
        "An encoder of MiniLM's shape (6 layers, width 384, 12 heads), 64 tokens, float32,",
        "beside its frozen base in the same format: each call to its end, in turn, a ratio the",
        "median over neighbouring calls. At small batches a GPU waits for kernels to be",
        "launched, and a piece costs as many launches as it has operations.",
        "",
        "| runtime | model | batch | base | ratio | quartiles |",
        "|---|---|---:|---:|---:|---|",
        *files,
        "",
    ]
    return "\n".join(
        [
            "# What pieces cost on a GPU",
            "",
            f"{one['device']}, torch {one['torch']}, transformers {one['transformers']};",
            "written by `benchmarks/gpu_cost.py`.",
            "",
            *(section if files else []),
            "## Training",
            "",
            f"A decoder of Llama-3.2-1B's shape, bfloat16, {ROWS} rows of {LENGTH} tokens:",
            "forward, backward and a step of AdamW, the same loop for both, pieces in bfloat16.",
            "",
            "| pieces | by | trained | step | quartiles | tokens/s | peak memory |",
            "|---|---|---:|---:|---|---:|---:|",
            *trained,
            "",
        ]
    )


if __name__ == "__main__":
    if "--table" in sys.argv:
        TABLE.write_text(table(read()), encoding="utf-8")
    else:
        measure(sys.argv[1:])
