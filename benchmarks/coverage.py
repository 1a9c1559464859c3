"""Every text type of the installed transformers: capture, sites, and each kind of insertion.

    python benchmarks/coverage.py            # goes on where it stopped; writes docs/coverage.md
    python benchmarks/coverage.py bert gpt2  # these types, printed

Each type is a tiny random model in a process of its own. For an insertion, "exact" means that at
zero initialisation the outputs equal the model's bit for bit at two sizes with padding; "effect"
that random pieces change them; "gradients" that every inserted tensor has one; "reference" that the
outputs are within 1e-5 (relative to the largest logit) of the plain model with forward hooks
(bottleneck, low-rank, vector), `inputs_embeds` (prompt), or its own cache and a function in
transformers' attention registry (prefix).
"""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "coverage.jsonl"
TABLE = ROOT / "docs" / "coverage.md"
LIMIT = 150  # seconds a type
SHAPES = ((2, 17), (4, 9))
METHODS = ("bottleneck", "low_rank", "vector", "prefix", "prompt")
SPECS: dict[str, list[dict[str, Any]]] = {
    "bottleneck": [
        {"id": "a", "at": "attn.out", "delta": {"bottleneck": {"dim": 5}}, "optional": True},
        {"id": "f", "at": "ffn.out", "delta": {"bottleneck": {"dim": 5}}, "optional": True},
    ],
    "low_rank": [
        {"id": r, "at": at, "delta": {"low_rank": {"rank": 3}}, "optional": True}
        for r, at in (("q", "attn.q"), ("k", "attn.k"), ("v", "attn.v"), ("d", "ffn.down"))
    ],
    "vector": [
        {"id": r, "at": at, "delta": "vector", "optional": True}
        for r, at in (("k", "attn.k"), ("v", "attn.v"), ("f", "ffn.act"))
    ],
    "prefix": [{"id": "p", "at": "attn.kv", "delta": {"prefix": {"tokens": 4}}}],
    "prompt": [{"id": "p", "at": "embed.out", "delta": {"prompt": {"tokens": 4}}}],
}


def case(name: str, task: str) -> dict[str, Any]:
    """Everything about one type."""
    import references
    import tiny
    import torch

    from peftc.capture import capture
    from peftc.dataflow import find_sites
    from peftc.dataflow.facts import Facts

    result: dict[str, Any] = {"type": name, "task": task}
    try:
        model = tiny.build(name, task)
    except Exception as cause:
        return {**result, "stage": "build", "error": first_line(cause)}
    start = time.perf_counter()
    try:
        program = capture(model)
    except Exception as cause:
        return {**result, "stage": "capture", "error": first_line(cause)}
    result["capture_s"] = round(time.perf_counter() - start, 1)
    with torch.no_grad():
        for shape in SHAPES:
            given = tiny.inputs(model, *shape)
            try:
                difference = main(program(**given)) - main(model(**given, use_cache=False))
            except Exception as cause:
                return {**result, "stage": "sizes", "error": first_line(cause)}
            if not difference.abs().max() <= 1e-5:
                return {
                    **result,
                    "stage": "sizes",
                    "error": f"differs by {difference.abs().max():.1e}",
                }
    try:
        sites = find_sites(program.clone())
    except Exception as cause:
        return {**result, "stage": "sites", "error": first_line(cause)}
    result["roles"] = {
        r: sum(s.role == r for s in (*sites.sites, *sites.attentions)) for r in sites.roles
    }
    result["layers"] = sites.layers
    needed = ("attn.q", "attn.k", "attn.v", "attn.out", "attn.kv", "ffn.out", "embed.out")
    result["all_roles"] = all(r in result["roles"] for r in needed)
    result["attention_calls"] = calls_agree(model, sites)
    downs = {s.name.replace("down", "act"): s.module for s in sites.sites if s.role == "ffn.down"}
    facts = Facts(sites.program)
    ends = {s.name: found for s in sites.sites if (found := producer(facts, s)) is not None}
    fused = {s.name: s.weight.rows for s in sites.sites if s.weight and s.weight.fused}
    hints = references.Modules(downs, ends, fused)
    for method in METHODS:
        result[method] = attempt(method, model, program, hints)
    if result["attention_calls"]:
        result["prefix"].update(by_hook(model, program, [a.role for a in sites.attentions]))
    return result


def producer(facts: Any, site: Any) -> tuple[str, float] | None:
    """(module, scale) where a site's value is scale times what the module returns, or None."""
    from peftc.dataflow.select import module_site, within

    h, scale = site.h, 1.0
    for _ in range(6):
        path = h.meta.get("module") or ""
        whole = module_site(facts, path) if path else None
        leaves = any(not within(u, path) for u in h.users)  # of a module that layers share
        if whole is not None and facts.op[whole.h] == facts.op[h] and (whole.h is h or leaves):
            return path, scale
        others = [a for a in h.args[1:] if isinstance(a, int | float)]
        if facts.op[h] in ("mul", "div") and len(others) == 1:
            scale = scale * others[0] if facts.op[h] == "mul" else scale / others[0]
        elif facts.op[h] not in ("dropout", "clone", "_to_copy", "reshape", "view"):
            return None
        h = h.all_input_nodes[0]
    return None


def calls_agree(model: Any, sites: Any) -> bool | None:
    """Whether the attentions found are those that the model calls; None where it calls none."""
    import references
    import tiny
    import torch

    try:
        with torch.no_grad():
            called = references.attention_calls(model, tiny.inputs(model, 2, 9))
    except Exception:
        return None
    found = [(a.heads, a.kv_heads, a.head_dim, a.value_dim) for a in sites.attentions]
    return called == found if called else None


def by_hook(model: Any, program: Any, roles: list[str]) -> dict[str, Any]:
    """The prefix with positions kept against the same inside the model's attention calls."""
    import references
    import tiny
    import torch

    prefix = {"tokens": 4, "positions": "keep"}
    insert = [{"id": "p", "at": "attn.kv", "delta": {"prefix": prefix}}]
    try:
        graph = references.randomised({"peftc": 1, "name": "keep", "insert": insert}, program)
        worst, cached = 0.0, []
        with torch.no_grad():
            for given in (tiny.inputs(model, *shape) for shape in SHAPES):
                wanted = references.prefixed_by_hook(model, graph, roles, given)
                real = "decoder_input_ids" not in given and given.get("attention_mask", False)
                difference = spread(main(graph(**given)) - wanted, real)
                worst = max(worst, difference / max(1.0, wanted.abs().max().item()))
                own = references.prefixed(model, graph, given)
                cached.append(own is not None and spread(main(graph(**given)) - own, real) < 1e-5)
        # A model that does not move positions by its cache is no reference for `shift`.
        return {"reference_hook": worst, "cache_keeps_positions": all(cached)}
    except Exception as cause:
        return {"no_hook": first_line(cause)}


def attempt(method: str, model: Any, program: Any, modules: Any) -> dict[str, Any]:
    """One kind of insertion on one model."""
    import tiny
    import torch

    import peftc

    found: dict[str, Any] = {}
    spec = {"peftc": 1, "name": method, "insert": SPECS[method]}
    try:
        graph = peftc.apply(spec, program)
        given = [tiny.inputs(model, *shape) for shape in SHAPES]
        with torch.no_grad():
            plain = [main(model(**g, use_cache=False)) for g in given]
            zero = [main(graph(**g)) for g in given]
        if method in ("bottleneck", "low_rank", "vector"):
            found["exact"] = all(torch.equal(a, b) for a, b in zip(zero, plain, strict=True))
        generator = torch.Generator().manual_seed(3)
        pieces = dict(graph.peft_parameters())
        found["tensors"] = len(pieces)
        for p in pieces.values():
            p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
        got = [main(graph(**g)) for g in given]
        real = ["decoder_input_ids" not in g and g.get("attention_mask", False) for g in given]
        found["effect"] = all(
            spread(a - b, r) > 1e-4 for a, b, r in zip(got, plain, real, strict=True)
        )
        (got[0].float().square().mean() + got[1].float().square().mean()).backward()
        lacking = [n for n, p in pieces.items() if p.grad is None or not p.grad.isfinite().all()]
        found["gradients"] = not lacking
        import references

        try:
            with torch.no_grad():
                wanted = [references.outputs(method, model, graph, g, modules) for g in given]
        except Exception as cause:  # the plain model cannot be asked this way
            found["no_reference"] = first_line(cause)
            return found
        if wanted[0] is not None:
            worst = max(
                spread(a.detach() - b, r) / max(1.0, b.abs().max().item())
                for a, b, r in zip(got, wanted, real, strict=True)
            )
            found["reference"] = worst
    except Exception as cause:
        found["error"] = first_line(cause)
    return found


def main(output: Any) -> Any:
    """The logits, or whatever stands first."""
    return output["logits"] if "logits" in output else next(iter(output.values()))


def spread(difference: Any, mask: Any) -> float:
    """The largest absolute value at real positions."""
    if mask is not False and mask.shape == difference.shape[:2]:
        difference = difference * mask[..., None]
    return difference.abs().max().item()


def first_line(cause: BaseException) -> str:
    """An error in one line."""
    lines = [t.strip() for t in str(cause).splitlines() if t.strip()]
    notes = [t for t in lines if "note" in t]
    return f"{type(cause).__name__}: {(notes or lines or [''])[0]}"[:220]


def ok(row: dict[str, Any], method: str) -> bool:
    """Whether an insertion works in every respect that was measured."""
    m = row.get(method) or {}
    good = m.get("tensors", 0) > 0 and m.get("effect") and m.get("gradients") and "error" not in m
    return bool(good and m.get("exact", True) and compared(m, 0.0) <= 1e-5)


def compared(m: dict[str, Any], otherwise: float | None = None) -> Any:
    """The largest difference from an independent reference, or `otherwise`."""
    kept = m.get("cache_keeps_positions", False)
    names = ("reference_hook",) if kept else ("reference", "reference_hook")
    found = [m[k] for k in names if k in m]
    return max(found) if found else otherwise


def write_table(rows: list[dict[str, Any]]) -> None:
    """docs/coverage.md from the results."""
    import torch
    import transformers

    captured = [r for r in rows if "roles" in r]
    whole = [r for r in captured if r["all_roles"]]
    lines = [
        "# Coverage",
        "",
        f"{len(rows)} text types of transformers {transformers.__version__} with "
        f"torch {torch.__version__},",
        "one tiny random model each, written by `benchmarks/coverage.py`.",
        "",
        "| | types |",
        "|---|---:|",
        f"| captured, batch and length free, equal to the model at two sizes | {len(captured)} |",
        f"| with every role (attention, feed-forward, embedding) | {len(whole)} |",
        *[f"| {m} works | {sum(ok(r, m) for r in rows)} |" for m in METHODS],
        *[
            f"| {m} equal to an independent reference within 1e-5 | "
            f"{sum(ok(r, m) and compared(r[m]) is not None for r in rows)} |"
            for m in METHODS
        ],
        "",
        "| type | task | capture | roles | " + " | ".join(METHODS) + " | reason |",
        "|---|---|---|---|" + "---|" * (len(METHODS) + 1),
    ]
    for r in sorted(rows, key=lambda r: r["type"]):
        seen = "yes" if "roles" in r else r.get("stage", "no")
        marks = [mark(r, m) for m in METHODS]
        reason = r.get("error") or next(
            (f"{m}: {r[m]['error']}" for m in METHODS if "error" in (r.get(m) or {})), ""
        )
        reason = reason.replace("|", "/")[:140]
        roles = "all" if r.get("all_roles") else "-" if "roles" not in r else "some"
        lines.append(
            f"| {r['type']} | {r['task']} | {seen} | {roles} | {' | '.join(marks)} | {reason} |"
        )
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def mark(row: dict[str, Any], method: str) -> str:
    """One cell: the difference from the reference, yes, or what is wrong."""
    m = row.get(method)
    if not m:
        return ""
    if ok(row, method):
        return "yes" if compared(m) is None else f"{compared(m):.0e}"
    if "error" in m or not m.get("tensors"):
        return "no"
    wrong = [k for k in ("exact", "effect", "gradients") if m.get(k) is False]
    return "not " + ", ".join(wrong) if wrong else f"differs {compared(m, 0.0):.0e}"


def run_one(name: str, task: str) -> dict[str, Any]:
    """One type in a process of its own."""
    command = [sys.executable, __file__, "--case", name, task]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"type": name, "task": task, "stage": "time", "error": f"over {LIMIT} s"}
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    try:
        return json.loads(last[0])
    except json.JSONDecodeError:
        tail = (done.stderr.strip().splitlines() or ["?"])[-1]
        return {"type": name, "task": task, "stage": "process", "error": tail[:200]}


def sweep(wanted: list[str]) -> None:
    """Run what has no result yet, two at a time."""
    import tiny

    done = {}
    if RESULTS.exists() and not wanted:
        done = {r["type"]: r for r in map(json.loads, RESULTS.read_text().splitlines())}
    todo = [(n, t) for n, t in tiny.types() if (n in wanted if wanted else n not in done)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for row in pool.map(lambda pair: run_one(*pair), todo):
            if wanted:
                print(json.dumps(row, indent=1))
                continue
            done[row["type"]] = row
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    if not wanted:
        write_table(list(done.values()))
        print(Counter(r.get("stage", "ok") for r in done.values()))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    if sys.argv[1:2] == ["--case"]:
        import os
        import warnings

        os.environ["OMP_NUM_THREADS"] = "1"
        warnings.simplefilter("ignore")
        print(json.dumps(case(*sys.argv[2:4])))
    else:
        sweep(sys.argv[1:])
