"""Every export format with every method on five models: differences, nodes, arithmetic.

    nice -n 10 python benchmarks/export_matrix.py             # goes on where it stopped
    nice -n 10 python benchmarks/export_matrix.py gpt2 onnx   # one model in one format, anew

Writes docs/export-matrix.md. Models have one layer a stack, small sizes and random weights, pieces
random numbers. A file is opened by its own runtime, as its runner script does, and compared at
sizes other than those it was exported at. Nodes are those of the ONNX graph. Arithmetic is what
torch counts for one call, beyond the frozen base; beside it stands what the pieces' own formulas
take. One process a model; the format that is compiled comes last.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "export_matrix.jsonl"
TABLE = ROOT / "docs" / "export-matrix.md"
FAMILIES = {"minilm": "MiniLM", "gpt2": "GPT-2", "llama": "Llama", "t5": "T5", "vit": "ViT"}
MODELS = {  # of the tests' zoo
    "minilm": ("bert", "sequence-classification"),
    "gpt2": ("gpt2", "causal-lm"),
    "llama": ("llama", "causal-lm"),
    "t5": ("t5", "seq2seq-lm"),
    "vit": ("vit", "image-classification"),
}
FORMATS = ("onnx", "torchscript", "hf", "aoti")
# name -> (spec, settings, fold)
METHODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "lora": ("lora", {"rank": 4}, "auto"),
    "lora unmerged": ("lora", {"rank": 4}, "unmerged"),
    "dora": ("dora", {"rank": 4}, "auto"),
    "ia3": ("ia3", {}, "auto"),
    "bitfit": ("bitfit", {}, "auto"),
    "houlsby": ("houlsby", {"dim": 6}, "auto"),
    "pfeiffer": ("pfeiffer", {"dim": 6}, "auto"),
    "parallel": ("parallel", {"dim": 6}, "auto"),
    "prefix": ("prefix", {"tokens": 5, "hidden": 8}, "auto"),
    "ptuning2": ("ptuning2", {"tokens": 5}, "auto"),
    "prompt": ("prompt", {"tokens": 5}, "auto"),
    "mam": ("mam", {"tokens": 5, "hidden": 8, "dim": 6}, "auto"),
    "unipelt": ("unipelt", {"rank": 4, "tokens": 5, "hidden": 8, "dim": 6}, "auto"),
}
LENGTH, BATCH = 13, 2
SHAPES = ((1, 2), (4, 12), (2, 29))  # none is the traced one


def values_at(graph: Any, batch: int, length: int, decoder: int | None = None) -> list[Any]:
    """One value for each input."""
    from peftc.capture.inputs import example_value

    sizes = {"batch": batch, "sequence": length, "decoder_sequence": decoder or length}
    vocabulary = getattr(graph.signature.config, "vocab_size", 2)
    return [example_value(i, sizes, vocabulary) for i in graph.signature.inputs]


def formula(graph: Any, base: Any) -> int:
    """What the pieces themselves take: products of their matrices, attention over their tokens."""
    import flops
    import torch

    from peftc.methods.prefix.module import Prefix
    from peftc.methods.prompt.module import Prompt

    counted, handles = [0], []

    def products(module: Any, given: Any, _out: Any) -> None:
        rows = given[-1].numel() // given[-1].shape[-1]
        matrices = [p for p in module.parameters() if p.dim() == 2]
        counted[0] += sum(2 * rows * p.numel() for p in matrices)

    more, values = 0, values_at(graph, BATCH, LENGTH)
    for module in graph.modules():
        if isinstance(module, Prefix):
            (kv, tokens, width), (_, _, value_width) = module.shapes
            rows = rows_of(graph, values)
            counted[0] += 2 * BATCH * rows * kv * module.repeats * tokens * (width + value_width)
        elif isinstance(module, Prompt):
            longer = values_at(graph, BATCH, LENGTH + module.tokens, LENGTH)
            more += flops.flops(base, longer) - flops.flops(base, values)
        elif type(module).__name__ in ("Bottleneck", "LowRank", "Gate"):
            handles.append(module.register_forward_hook(products))
    with torch.no_grad():
        graph.flat(*values)
    for handle in handles:
        handle.remove()
    return counted[0] + more


def rows_of(graph: Any, values: list[Any]) -> int:
    """The queries of one example that read a prefix."""
    config = graph.signature.config
    if graph.signature.inputs[0].name == "pixel_values":
        return (config.image_size // config.patch_size) ** 2 + 1
    return LENGTH


def opened(exported: Any) -> Any:
    """The file in its own runtime."""
    from peftc.backends import backend

    opened = runpy.run_path(str(backend(exported.kind).runner))["opened"]
    return opened(str(exported.folder / exported.file))


def difference(graph: Any, exported: Any) -> float:
    """The largest difference over all outputs and sizes."""
    import torch

    run = opened(exported)
    worst = 0.0
    for batch, length in SHAPES:
        values = values_at(graph, batch, length)
        with torch.no_grad():
            ours = graph.flat(*values)
        names = [i.name for i in graph.signature.inputs]
        theirs = run({n: v.numpy() for n, v in zip(names, values, strict=True)})()
        if isinstance(theirs, torch.Tensor):
            theirs = [theirs]
        elif isinstance(theirs, dict):
            theirs = [theirs[o.name] for o in graph.signature.outputs]
        for a, b in zip(ours, theirs, strict=True):
            apart = (a.double() - torch.as_tensor(b).double()).abs().max().item()
            worst = apart if not apart <= worst else worst
    return worst


def nodes_of(exported: Any) -> int:
    """How many operations an ONNX file has."""
    import onnx

    model = onnx.load(exported.folder / exported.file, load_external_data=False)
    return len(model.graph.node)


def case(base: Any, method: str, kind: str, home: Path, bases: dict[str, int]) -> dict[str, Any]:
    """One cell of the table."""
    import flops
    import torch

    import peftc
    from peftc.backends import backend
    from peftc.backends.export import folded_for, merged
    from peftc.ground.diagnostics import PeftcError

    spec, settings, fold = METHODS[method]
    if fold == "unmerged" and backend(kind).merges:
        return {"refused": "pieces are merged"}
    try:
        graph = peftc.apply(spec, base, set=settings).eval()
    except PeftcError as cause:
        return {"refused": f"{cause.diagnostics[0].code}: {cause.diagnostics[0].message}"}
    generator = torch.Generator().manual_seed(2)
    for parameter in peftc.trainable(graph).values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    out = home / method.replace(" ", "-") / kind
    start = time.perf_counter()
    try:
        exported = peftc.export(graph, kind, out, fold=fold)
    except PeftcError as cause:
        return {"refused": f"{cause.diagnostics[0].code}: {cause.diagnostics[0].message}"}
    seconds = time.perf_counter() - start
    result = {"difference": difference(graph, exported), "seconds": round(seconds, 1)}
    if kind != "onnx":
        return result
    if "nodes" not in bases:
        bases["nodes"] = nodes_of(peftc.export(base, kind, home / "base"))
    program = folded_for(graph, backend(kind), fold, merged(graph, backend(kind), fold))
    values = values_at(graph, BATCH, LENGTH)
    before = flops.flops(base, values)
    return {
        **result,
        "base_nodes": bases["nodes"],
        "nodes": nodes_of(exported) - bases["nodes"],
        "base_flops": before,
        "flops": flops.flops(program, values) - before,
        "formula": formula(program, base),
    }


def child(family: str, kinds: list[str], done: set[tuple[str, str]]) -> None:
    """Every cell of a model that is not there yet, a line of JSON each."""
    import zoo

    from peftc.capture import capture

    base, bases = capture(zoo.build(*MODELS[family], layers=1)), {}
    with tempfile.TemporaryDirectory() as home:
        for kind in kinds:
            for method in METHODS:
                if (kind, method) in done:
                    continue
                found = case(base, method, kind, Path(home), bases)
                line = {"family": family, "format": kind, "method": method, **found}
                print(json.dumps(line), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The document: a table of differences, and one of what is paid beyond the base."""
    import torch

    cells = {(r["family"], r["method"], r["format"]): r for r in rows}
    notes: dict[str, list[str]] = defaultdict(list)

    def shown(family: str, method: str, kind: str) -> str:
        one = cells.get((family, method, kind))
        if one is None:
            return "not run"
        if "refused" in one:
            text = one["refused"]
            notes[text].append(f"{FAMILIES[family]} {method} {kind}")
            return f"[{1 + list(notes).index(text)}]"
        return f"{one['difference']:.0e}"

    lines = [
        "# Every format with every method",
        "",
        "Models of one layer a stack with random weights, pieces with random numbers; the largest",
        "difference between a graph and its file in the file's own runtime, over all outputs, at",
        f"three sizes it was not exported at. torch {torch.__version__}; written by",
        "`benchmarks/export_matrix.py`. A number in brackets is a refusal, listed below.",
        "",
        f"| model | method | {' | '.join(FORMATS)} |",
        f"|---|---|{'---|' * len(FORMATS)}",
    ]
    for family, title in FAMILIES.items():
        for method in METHODS:
            row = [shown(family, method, kind) for kind in FORMATS]
            lines.append(f"| {title} | {method} | {' | '.join(row)} |")
    lines += [""]
    lines += [f"{k}. {t} ({len(w)} cells)" for k, (t, w) in enumerate(notes.items(), 1)]
    lines += [
        "",
        "## What is paid beyond the frozen base",
        "",
        f"Nodes of the ONNX graph, and floating-point operations of one call with {BATCH} rows of",
        f"{LENGTH} tokens, beyond those of the base exported alone. The last column is what the",
        "pieces' formulas take: 2 a multiply-add of their matrices, attention over the tokens of",
        "a prefix, and for a prompt the base itself over its tokens. A prompt takes less where its",
        "tokens leave before the head. `unipelt` takes more: the gate of each query on a prefix",
        "gives queries, keys and values features of their own for it, beside the model's: one a",
        "token or, with heads as narrow as here, as many as the model's.",
        "",
        "| model | method | nodes of the base | nodes added | operations added | by formula |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for family, title in FAMILIES.items():
        for method in METHODS:
            one = cells.get((family, method, "onnx"))
            if one is None or "refused" in one:
                continue
            lines.append(
                f"| {title} | {method} | {one['base_nodes']:,} | {one['nodes']:,} "
                f"| {one['flops']:,} | {one['formula']:,} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    """Run what is missing and write the table."""
    if sys.argv[1:2] == ["--child"]:
        family, kinds, done = json.loads(sys.argv[2])
        child(family, kinds, {(k, m) for k, m in done})
        return
    families = [a for a in sys.argv[1:] if a in FAMILIES] or list(FAMILIES)
    kinds = [a for a in sys.argv[1:] if a in FORMATS] or list(FORMATS)
    rows = []
    if RESULTS.is_file():
        rows = [json.loads(t) for t in RESULTS.read_text(encoding="utf-8").splitlines()]
    if len(sys.argv) > 1:
        rows = [r for r in rows if r["family"] not in families or r["format"] not in kinds]
    for group in ([k for k in kinds if k != "aoti"], [k for k in kinds if k == "aoti"]):
        for family in families:
            done = [(r["format"], r["method"]) for r in rows if r["family"] == family]
            if {(k, m) for k in group for m in METHODS} <= set(done):
                continue
            command = [sys.executable, __file__, "--child", json.dumps([family, group, done])]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    rows.append(json.loads(line))
                    text = "".join(json.dumps(r) + "\n" for r in rows)
                    RESULTS.write_text(text, encoding="utf-8")
                    print(line.strip(), flush=True)
                    TABLE.write_text(table(rows), encoding="utf-8")
    TABLE.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests")]  # the zoo
    main()
