"""Imported checkpoints against what they mean: every method, model and task, as docs/parity.md.

    python benchmarks/parity.py                    # what has no result yet, then the table
    python benchmarks/parity.py SEQ_CLS bert gpt2  # a task, and models of it

The reference is PEFT with the same weights. Where PEFT cannot run a cell it says so, and for a
prefix the reference is then the model's own cache, given by a hook. A difference beyond the
tolerance is measured once more in float64, which tells rounding from another formula. Every model
and task is captured once; results are kept after each, so that a run goes on where the last one
stopped.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft_cases
import torch
from torch.nn import functional

from peftc.ground.diagnostics import PeftcError

HERE = Path(__file__).parent
RESULTS = HERE / "parity.jsonl"
TABLE = HERE.parent / "docs" / "parity.md"
METHODS = (
    "lora", "lora patterns", "lora bias", "lora embedding", "dora", "ia3", "prefix", "prompt",
    "p-tuning", "houlsby", "p-tuning v2",
)  # fmt: skip
TOLERANCE, TOLERANCE64 = 1e-5, 1e-12
REASONS = ("absent", "refused", "error", "because")
Row = dict[str, Any]


def sweep(tasks: list[str], models: list[str]) -> None:
    """Run what has no result yet, write it down model by model, and draw the table."""
    for task, kinds in peft_cases.OF.items():
        for kind in kinds:
            if (tasks and task not in tasks) or (models and kind not in models):
                continue
            rows = read()
            todo = [m for m in METHODS if "error" in rows.get((kind, task, m), {"error": ""})]
            for method in todo:
                rows[kind, task, method] = cell(method, kind, task)
            if todo:
                write(rows)
            peft_cases.captured.cache_clear()
    write_table(read())


def read() -> dict[tuple[str, str, str], Row]:
    """The results so far, by model, task and method."""
    lines = RESULTS.read_text("utf-8").splitlines() if RESULTS.exists() else []
    rows = [json.loads(t) for t in lines]
    return {(r.pop("model"), r.pop("task"), r.pop("method")): r for r in rows}


def write(rows: dict[tuple[str, str, str], Row]) -> None:
    """Keep the results, in the order of the table."""
    lines = []
    for task, kinds in peft_cases.OF.items():
        for key in [(k, task, m) for k in kinds for m in METHODS]:
            if key in rows:
                row = dict(zip(("model", "task", "method"), key, strict=True)) | rows[key]
                lines.append(json.dumps(row) + "\n")
    beside = RESULTS.with_suffix(".new")
    beside.write_text("".join(lines), "utf-8")
    beside.replace(RESULTS)


def cell(method: str, kind: str, task: str) -> Row:
    """One comparison, or why there is none."""
    try:
        if method == "houlsby":
            return bottlenecks(kind, task)
        if method == "p-tuning v2":
            return deep_prompts(kind, task)
        row = imported(method, kind, task)
        if row.get("difference", 0.0) > TOLERANCE:
            row["float64"] = imported(method, kind, task, torch.float64)["difference"]
            row["rounding"] = rounding(method, kind, task)
        return row
    except PeftcError as refusal:
        return {"refused": f"peftc: {first_line(refusal)}"}
    except Exception as cause:  # whatever a library or we raise becomes the cell's reason
        return {"error": f"{type(cause).__name__}: {first_line(cause)}"}


def imported(method: str, kind: str, task: str, dtype: torch.dtype = torch.float32) -> Row:
    """A checkpoint that PEFT saved, imported and compared with PEFT."""
    import peftc

    plain = peft_cases.build(kind, task, dtype)
    try:
        model = peft_cases.adapted(method, kind, task).to(dtype)
    except (ValueError, KeyError, AttributeError, RuntimeError) as cause:
        return {"absent": f"PEFT: {first_line(cause)}"}
    why = unable(model, plain)
    if why and (method != "prefix" or cache_of(plain) is None):
        return {"absent": why}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = peft_cases.saved(model, folder)
        try:
            graph = peftc.import_checkpoint(checkpoint, peft_cases.captured(kind, task, dtype))
        except PeftcError:
            if why:
                return {"absent": why}
            raise
    row = {"reference": "PEFT"}
    if why:
        row = {"reference": "cache", "because": why}
        heads(plain, model)
        difference, effect = with_cache(graph, kind, task, plain, model.get_prompt)
    else:
        difference, effect = peft_cases.compare(graph, model, plain)
    return {"difference": difference, "effect": effect, **row}


def unable(model: Any, plain: Any) -> str | None:
    """Why a PEFT model that was made cannot run, or None."""
    try:
        with torch.no_grad():
            model(**peft_cases.told(model, plain, peft_cases.batches(model, plain)[0]))
    except (ValueError, TypeError, NotImplementedError) as cause:
        return f"PEFT: {first_line(cause)}"
    return None


def rounding(method: str, kind: str, task: str) -> float:
    """How far PEFT itself is in float32 from PEFT in float64, with the same weights."""
    short = peft_cases.adapted(method, kind, task)
    long = copy.deepcopy(short).double()
    found = []
    for given in peft_cases.batches(short, peft_cases.build(kind, task)):
        with torch.no_grad():
            found.append(peft_cases.difference(short(**given), long(**given), given))
    return max(found)


def heads(plain: Any, model: Any) -> None:
    """Give the plain model the trained head of a PEFT model."""
    state = plain.state_dict()
    for name, value in model.state_dict().items():
        own = name.removeprefix("base_model.").replace(".modules_to_save.default", "")
        if own in state and ".modules_to_save." in name:
            state[own].copy_(value)


def with_cache(graph: Any, kind: str, task: str, plain: Any, cache: Any) -> tuple[float, float]:
    """A graph with a prefix against the model itself; `cache` makes its cache for a batch size."""
    core, name = plain.base_model, cache_of(plain)
    handle = core.register_forward_pre_hook(giving(cache, name), with_kwargs=True)
    try:
        difference, _ = peft_cases.compare(graph, plain, plain)
    finally:
        handle.remove()
    return difference, peft_cases.compare(graph, peft_cases.build(kind, task), plain)[0]


def cache_of(plain: Any) -> str | None:
    """What a model calls the cache that it takes, if it takes one."""
    accepted = inspect.signature(plain.base_model.forward).parameters
    return next((n for n in ("past_key_values", "cache") if n in accepted), None)


def giving(cache: Any, name: Any) -> Any:
    """A hook that gives a base model a cache that holds `TOKENS` visible tokens."""

    def give(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        two = "decoder_input_ids" in inspect.signature(module.forward).parameters
        ids: Any = kwargs.get("input_ids", args[0] if args else None)
        key = "decoder_attention_mask" if two else "attention_mask"
        given = {name: cache(len(ids)), "use_cache": True}
        if kwargs.get(key) is not None:
            ones = torch.ones(len(ids), peft_cases.TOKENS, dtype=kwargs[key].dtype)
            given[key] = torch.cat([ones, kwargs[key]], 1)
        return args, kwargs | given

    return give


def deep_prompts(kind: str, task: str) -> Row:
    """The shipped `ptuning2` with random values against the model's own cache.

    A model that takes none has a function in transformers' attention registry, positions kept.
    """
    import reference
    from transformers import DynamicCache, EncoderDecoderCache

    import peftc

    plain = peft_cases.build(kind, task)
    stack = {"stack": "decoder"} if kind in ("t5", "bart") and task != "TOKEN_CLS" else {}
    options: dict[str, Any] = {"tokens": peft_cases.TOKENS, "mask": "cached"}
    if cache_of(plain) is None:
        options = {"tokens": peft_cases.TOKENS, "positions": "keep"}
    entry = {"id": "deep_prompt", "at": "attn.kv", "delta": {"prefix": options}, **stack}
    spec = {"peftc": 1, "name": "ptuning2", "insert": [entry]}
    graph = peftc.apply(spec, peft_cases.captured(kind, task))
    reference.randomise(graph)
    placed: list[tuple[Any, Any]] = reference.placed(graph, "deep_prompt")
    if cache_of(plain) is None:
        of = {plain.get_submodule(s["module"]): (p.key, p.value) for s, p in placed}
        with reference.seeing(plain, of):
            difference, _ = peft_cases.compare(graph, plain, plain)
        effect, _ = peft_cases.compare(graph, plain, plain)
        return {"difference": difference, "effect": effect, "reference": "attention function"}

    def cache(batch: int) -> Any:
        own = DynamicCache(
            [
                tuple(t.detach()[None].expand(batch, -1, -1, -1) for t in (p.key, p.value))
                for _, p in placed
            ]
        )
        return EncoderDecoderCache(own, DynamicCache()) if stack else own

    difference, effect = with_cache(graph, kind, task, plain, cache)
    return {"difference": difference, "effect": effect, "reference": "cache"}


def bottlenecks(kind: str, task: str) -> Row:
    """The shipped `houlsby` with random values against up(act(down(h))) + h in hooks."""
    import reference

    import peftc

    graph = peftc.apply("houlsby", peft_cases.captured(kind, task), set={"dim": 6})
    for insertion in ("after_attn", "after_ffn"):
        for _, piece in reference.placed(graph, insertion):
            for parameter in piece.parameters():
                parameter.data.add_(0.3 * torch.randn(parameter.shape))
    plain, handles = peft_cases.build(kind, task), []
    for insertion in ("after_attn", "after_ffn"):
        for site, piece in reference.placed(graph, insertion):
            module = plain.get_submodule(site["module"])
            handles.append(module.register_forward_hook(added(piece, site["width"])))
    difference, _ = peft_cases.compare(graph, plain, plain)
    for handle in handles:
        handle.remove()
    effect, _ = peft_cases.compare(graph, plain, plain)
    return {"difference": difference, "effect": effect, "reference": "hooks"}


def added(piece: Any, width: int) -> Any:
    """A hook: h + up(silu(down(h))) for what a module gives, from the piece's tensors alone."""
    down, up = piece.down, piece.up

    def change(h: Any) -> Any:
        hidden = functional.silu(h @ down.weight.T + down.bias)
        return h + hidden @ up.weight.T + up.bias

    def hook(_module: Any, _args: Any, out: Any) -> Any:
        with torch.no_grad():
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return hook


def first_line(cause: BaseException) -> str:
    """An error in one line."""
    lines = [t.strip() for t in str(cause).splitlines() if t.strip()]
    return (lines or [type(cause).__name__])[0][:140]


def write_table(rows: dict[tuple[str, str, str], Row]) -> None:
    """docs/parity.md: a table a task, a line a model, a column a method."""
    import peft
    import transformers

    measured = [r for r in rows.values() if "difference" in r]
    assert all(r["effect"] > 1e-3 for r in measured)
    within = [r for r in measured if r["difference"] <= TOLERANCE]
    rounded = [r for r in measured if r not in within and r.get("float64", 1.0) <= TOLERANCE64]
    numbers = ("difference", "float64", "rounding")
    worst = [f"{max([r[k] for r in rounded], default=0.0):.0e}" for k in numbers]
    lines = [
        "# Parity",
        "",
        "The largest difference of the outputs from a reference with the same weights: random,",
        "none zero, padded rows, two shapes, tiny models. Checkpoints of PEFT are imported and",
        f"compared with PEFT {peft.__version__} itself (transformers {transformers.__version__}, "
        f"torch {torch.__version__}, float32);",
        "Houlsby's adapters with their formula in forward hooks; P-Tuning v2 with the model's own",
        "cache of keys and values (DistilBERT takes none: its attention function is replaced).",
        "PEFT's wrapper for question answering does not pass token types on: they are left out.",
        "`python benchmarks/parity.py` measures and writes this page.",
        "",
        f"{len(within)} of {len(measured)} comparisons are within {TOLERANCE:.0e}. {len(rounded)} "
        f"others are rounding: up to {worst[0]}",
        f"in float32, at most {worst[1]} where the same is computed in float64, in brackets (0:",
        "norms that round to float32). Updates are as large as the weights there, and PEFT itself",
        f"in float32 is up to {worst[2]} from PEFT in float64.",
        "`c`: PEFT cannot run it with this transformers; compared with the model's own cache.",
        "`-`: PEFT cannot make or run it, so there is nothing to compare with.",
    ]
    for task, kinds in peft_cases.OF.items():
        lines += ["", f"## {task}", "", f"| model | {' | '.join(METHODS)} |"]
        lines.append("|---|" + "---:|" * len(METHODS))
        for kind in kinds:
            marks = [mark(rows.get((kind, task, m), {})) for m in METHODS]
            lines.append(f"| {kind} | {' | '.join(marks)} |")
    reasons: dict[str, list[str]] = {}
    for key, row in rows.items():
        if why := next((row[k] for k in REASONS if k in row), None):
            reasons.setdefault(why, []).append(" ".join(key))
    if reasons:
        lines += ["", "## Why there is no comparison with PEFT", ""]
        lines += [f"- {why}: {', '.join(where)}" for why, where in reasons.items()]
    TABLE.write_text("\n".join(lines) + "\n", "utf-8")


def mark(row: Row) -> str:
    """One cell."""
    if "difference" not in row:
        return "error" if "error" in row else "x" if "refused" in row else "-"
    text = f"{row['difference']:.0e}" if row["difference"] else "0"
    if "float64" in row:
        text += f" ({row['float64']:.0e})"
    return text + (" c" if "because" in row else "")


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent / "tests")]  # the references
    warnings.simplefilter("ignore")
    arguments = sys.argv[1:]
    sweep([a for a in arguments if a.isupper()], [a for a in arguments if not a.isupper()])
