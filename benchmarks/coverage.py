"""Every text type of the installed transformers: capture, sites, and each kind of insertion.

    python benchmarks/coverage.py              # what the code as it is has no result for
    python benchmarks/coverage.py bert gpt2    # these types again, in this order
    python benchmarks/coverage.py --table      # docs/coverage.md from the results there are

Writes docs/coverage.md, with some types for images and sound behind those for text. Each type is a
tiny random model in a process of its own; its result holds a hash of the code that it ran. For an
insertion, "exact" means that at zero initialisation the outputs equal the model's bit for bit at
two sizes with padding; "effect" that random pieces change them; "gradients" that every inserted
tensor has one; "reference" that the outputs are within 1e-5 (relative to the largest logit) of the
plain model with forward hooks (bottleneck, low-rank, vector), `inputs_embeds` (prompt), or (prefix)
its own cache, a function in transformers' attention registry, and prefix_at_run_time.py, as many of
them as a model has.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "coverage.jsonl"
TABLE = ROOT / "docs" / "coverage.md"
LIMIT = 900  # seconds a type
# What a result depends on.
CODE = (
    "capture", "dataflow", "passes", "pieces", "methods", "planning", "rewrite/schedule.py",
    "rewrite/pipeline.py",
)  # fmt: skip
STATIC = 17  # tokens, where the length cannot be free
SHAPES = ((2, 17), (4, 9))
# What is known of a difference where a row does not say.
KNOWN: dict[tuple[str, str], str] = {
    ("deepseek_v4", "causal-lm"): "hyper-connections: a matrix that the tokens make mixes four "
    "streams before each addition, so no value is skipped and no branch found",
    **{
        (name, "causal-lm"): "the first attention of a block joins no stream: blocks are mixed by "
        "attention over their outputs, and those have no sites"
        for name in ("inkling2_text", "inkling2_loop_text")
    },
}
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


def case(name: str, task: str, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Everything about one type."""
    import references
    import tiny
    import torch

    from peftc.capture import capture
    from peftc.dataflow import find_sites
    from peftc.dataflow.facts import Facts

    result: dict[str, Any] = {"type": name, "task": task, "source": source()}
    try:
        # Frozen, as in the graph: torch multiplies by a weight with a gradient in another order.
        model = tiny.build(name, task).requires_grad_(False)
    except Exception as cause:
        return {**result, "stage": "build", "error": first_line(cause)}
    start = time.perf_counter()
    try:
        program = capture(model)
    except Exception as cause:
        result["static"] = static(model)
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
    text = task not in tiny.SENSES
    methods = [m for m in methods if text or m != "prompt"]  # tests/passes/test_rows.py has these
    needed = ("attn.q", "attn.k", "attn.v", "attn.out", "attn.kv", "ffn.out", *["embed.out"] * text)
    result["all_roles"] = all(r in result["roles"] for r in needed)
    result["attention_calls"], result["attentions_called"] = calls_agree(model, sites)
    downs = {s.name.replace("down", "act"): s.module for s in sites.sites if s.role == "ffn.down"}
    facts = Facts(sites.program)
    ends = {s.name: found for s in sites.sites if (found := producer(facts, s)) is not None}
    fused = {s.name: s.weight.rows for s in sites.sites if s.weight and s.weight.fused}
    hints = references.Modules(downs, ends, fused)
    for method in methods:
        result[method] = attempt(method, model, program, hints)
        if 1e-5 < compared(result[method], 0.0) < 1e-2:  # rounding, or a fault
            model64 = tiny.build(name, task).double()
            result[method]["float64"] = attempt(method, model64, capture(model64), hints)
    if "prefix" in methods and sites.attentions:
        result["prefix"].update(kept(model, program, sites, bool(result["attention_calls"])))
    return result


def static(model: Any) -> bool:
    """Whether a capture for one length alone holds, and gives the sites."""
    import peftc

    try:
        return bool(peftc.sites(model, static_length=STATIC).sites)
    except Exception:
        return False


@functools.cache
def source() -> str:
    """A hash of the code under test."""
    digest = hashlib.sha256()
    for part in CODE:
        path = ROOT / "peftc" / part
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def producer(facts: Any, site: Any) -> tuple[str, float] | None:
    """(module, scale) where a site's value is scale times what the module returns, or None."""
    from peftc.dataflow.select import module_site, within

    h, scale = site.h, 1.0
    for _ in range(6):
        path = h.meta.get("module") or ""
        whole = module_site(facts, path) if path else None
        leaves = any(not within(u, path) for u in h.users)  # of a module that layers share
        if facts.op[h] == "dropout" and serves_several(facts, path):
            h = h.all_input_nodes[0]
            continue
        if whole is not None and facts.op[whole.h] == facts.op[h] and (whole.h is h or leaves):
            return path, scale
        others = [a for a in h.args[1:] if isinstance(a, int | float)]
        if facts.op[h] in ("mul", "div") and len(others) == 1:
            scale = scale * others[0] if facts.op[h] == "mul" else scale / others[0]
        elif facts.op[h] not in ("dropout", "clone", "_to_copy", "reshape", "view"):
            return None
        h = h.all_input_nodes[0]
    return None


def serves_several(facts: Any, path: str) -> bool:
    """Whether a model calls this dropout for several values."""
    calls = [n for n in facts.nodes if n.op == "call_module" and n.meta.get("module") == path]
    return len(calls) > 1


def calls_agree(model: Any, sites: Any) -> tuple[bool | None, int]:
    """Whether the attentions found are those that the model calls (None: it calls none); calls."""
    import references
    import tiny
    import torch

    try:
        with torch.no_grad():
            called = references.attention_calls(model, tiny.inputs(model, 2, 9))
    except Exception:
        return None, 0
    found = [  # a model that repeats its key heads in turn does so before the call
        (a.heads, a.heads if a.tiled else a.kv_heads, a.head_dim, a.value_dim)
        for a in sites.attentions
    ]
    return (called == found if called else None), len(called)


def kept(model: Any, program: Any, sites: Any, registry: bool) -> dict[str, Any]:
    """The prefix with positions kept, against the same inside the model as it runs."""
    import references
    import tiny
    import torch
    from prefix_at_run_time import prefixed_at_run_time

    prefix = {"tokens": 4, "positions": "keep"}
    insert = [{"id": "p", "at": "attn.kv", "delta": {"prefix": prefix}}]
    roles = [a.role for a in sites.attentions]
    ways: dict[str, Any] = {
        "reference_run": lambda graph, given: prefixed_at_run_time(
            model, graph, sites.attentions, given
        ),
        "cached": lambda graph, given: references.prefixed(model, graph, given),
    }
    if registry:
        ways["reference_hook"] = lambda graph, given: references.prefixed_by_hook(
            model, graph, roles, given
        )
    found: dict[str, Any] = {}
    with torch.no_grad():
        try:
            graph = references.randomised({"peftc": 1, "name": "keep", "insert": insert}, program)
            inputs = [tiny.inputs(model, *shape) for shape in SHAPES]
            got = [main(graph(**given)) for given in inputs]
        except Exception as cause:
            return {"no_keep": first_line(cause)}
        for way, run in ways.items():
            try:
                wanted = [run(graph, given) for given in inputs]
            except Exception as cause:  # the plain model cannot be asked this way
                found[f"no_{way}"] = first_line(cause)
                continue
            if not any(w is None for w in wanted):
                found[way] = max(map(apart, got, wanted, inputs))
    # A model that does not move positions by its cache is no reference for `shift`.
    found["cache_keeps_positions"] = found.pop("cached", 1.0) <= 1e-5
    return found


def apart(got: Any, wanted: Any, given: dict[str, Any]) -> float:
    """The largest difference at real positions, relative to the largest value from 1 on."""
    real = "decoder_input_ids" not in given and given.get("attention_mask", False)
    return spread(got - wanted, real) / max(1.0, wanted.abs().max().item())


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
            if not found["exact"]:
                found["inexact"] = max(map(apart, zero, plain, given))
        generator = torch.Generator().manual_seed(3)
        pieces = dict(graph.peft_parameters())
        found["tensors"] = len(pieces)
        if not pieces:  # every entry of the spec is optional
            return {**found, "error": "no " + ", ".join(i["at"] for i in SPECS[method])}
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
            found["reference"] = max(map(apart, [g.detach() for g in got], wanted, given))
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
    notes = [t for t in lines if "note" in t and lines[0].startswith("error[E2")]
    said = notes[-1:] if lines and lines[0].startswith("error[E202") else notes  # how far it holds
    return f"{type(cause).__name__}: {(said or lines or [''])[0]}"[:220]


def ok(row: dict[str, Any], method: str) -> bool:
    """Whether an insertion works in every respect that was measured."""
    m = row.get(method) or {}
    good = m.get("tensors", 0) > 0 and m.get("effect") and m.get("gradients") and "error" not in m
    return bool(good and m.get("exact", True) and compared(m, 0.0) <= 1e-5)


def compared(m: dict[str, Any], otherwise: float | None = None) -> Any:
    """The largest difference from an independent reference, or `otherwise`."""
    keeps = m.get("cache_keeps_positions", False)
    names = ("reference_hook", "reference_run", *(() if keeps else ("reference",)))
    found = [m[k] for k in names if k in m]
    exactly = compared(m["float64"]) if "float64" in m else None
    if exactly is not None:
        return exactly
    return max(found) if found else otherwise


def write_table(rows: list[dict[str, Any]]) -> None:
    """docs/coverage.md from the results."""
    import tiny
    import torch
    import transformers

    text = [r for r in rows if r["task"] not in tiny.SENSES]
    sensed = [r for r in rows if r["task"] in tiny.SENSES]
    sources = Counter(r.get("source", "older code") for r in rows)
    lines = [
        "# Coverage",
        "",
        f"{len(text)} text types of transformers {transformers.__version__} with "
        f"torch {torch.__version__},",
        "one tiny random model each, written by `benchmarks/coverage.py`.",
        "",
        "Code: " + ", ".join(f"{n} rows by {s}" for s, n in sources.most_common()) + ".",
        "",
        *counts(text),
        "",
        "A number is the largest difference from an independent reference, relative to the largest",
        "logit; `yes` means that everything else was measured and there is no reference.",
        "",
        *listed(text, METHODS),
        "",
        "## Images and sound",
        "",
        *listed(sensed, METHODS[:-1]),
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def counts(rows: list[dict[str, Any]]) -> list[str]:
    """How many types there are of what is asked for."""
    captured = [r for r in rows if "roles" in r]
    whole = [r for r in captured if r["all_roles"]]
    asked = [r for r in rows if "static" in r]
    alone = [r for r in asked if r["static"]]
    return [
        "| | types |",
        "|---|---:|",
        f"| captured, batch and length free, equal to the model at four sizes | {len(captured)} |",
        f"| with every role (attention, feed-forward, embedding) | {len(whole)} |",
        *[f"| of {len(asked)} others: one length alone (`--static-length`) | {len(alone)} |"]
        * bool(asked),
        *[f"| {m} works | {sum(ok(r, m) for r in rows)} |" for m in METHODS],
        *[
            f"| {m} equal to an independent reference within 1e-5 | "
            f"{sum(ok(r, m) and compared(r[m]) is not None for r in rows)} |"
            for m in METHODS
        ],
    ]


def listed(rows: list[dict[str, Any]], methods: Sequence[str]) -> list[str]:
    """A line for each type."""
    lines = [
        "| type | task | capture | roles | " + " | ".join(methods) + " | reason |",
        "|---|---|---|---|" + "---|" * (len(methods) + 1),
    ]
    for r in sorted(rows, key=lambda r: (r["type"], r["task"])):
        seen = "yes" if "roles" in r else "one length" if r.get("static") else "no"
        roles = "all" if r.get("all_roles") else "-" if "roles" not in r else "some"
        marks = " | ".join(mark(r, m) for m in methods)
        lines.append(f"| {r['type']} | {r['task']} | {seen} | {roles} | {marks} | {reason(r)} |")
    return lines


def reason(row: dict[str, Any]) -> str:
    """Why a type lacks something, in short."""
    found = [row["error"]] if "error" in row else []
    found += [KNOWN[key]] if (key := (row["type"], row["task"])) in KNOWN else []
    roles = row.get("roles", {})
    if "mixer.out" in roles and not {"attn.out", "ffn.out"} & {*roles}:
        found.append("all its blocks are mixers, which the specs here do not name")
    for method in METHODS:
        m = row.get(method) or {}
        if row.get("attention_calls") is False and method == "prefix":
            ours, called = roles.get("attn.kv", 0) + roles.get("cross.kv", 0), "others than"
            if ours < row.get("attentions_called", 0):
                called = f"{ours} of the {row['attentions_called']} that"
            found.append(f"attention: found {called} the model calls")
        if "error" in m:
            found.append(f"{method}: {m['error']}")
    text = found[0] if found else ""
    return text.replace("PeftcError: ", "").replace("= note: ", "").replace("|", "/")[:160]


def mark(row: dict[str, Any], method: str) -> str:
    """One cell: the difference from the reference, yes, or what is wrong."""
    m = row.get(method)
    if not m:
        return ""
    if ok(row, method):
        number = "yes" if compared(m) is None else f"{compared(m):.0e}"
        return f"{number} in float64" if "float64" in m else number
    if "error" in m or not m.get("tensors"):
        return "no"
    wrong = [k for k in ("exact", "effect", "gradients") if m.get(k) is False]
    if wrong == ["exact"] and "inexact" in m:
        return f"not exact, {m['inexact']:.0e}"
    return "not " + ", ".join(wrong) if wrong else f"differs {compared(m, 0.0):.0e}"


def run_one(name: str, task: str) -> dict[str, Any]:
    """One type in a process of its own, forked so that libraries are imported once."""
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=lambda: its.send(case(name, task)))
    process.start()
    its.close()
    row: dict[str, Any] = {"type": name, "task": task, "source": source()}
    try:
        if not ours.poll(LIMIT):
            return {**row, "stage": "time", "error": f"over {LIMIT} s"}
        return {**ours.recv(), "seconds": round(time.perf_counter() - start, 1)}
    except EOFError:
        process.join()
        return {**row, "stage": "process", "error": f"ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def results() -> dict[tuple[str, str], dict[str, Any]]:
    """The last result of each (type, task)."""
    if not RESULTS.exists():
        return {}
    rows = map(json.loads, RESULTS.read_text().splitlines())
    return {(r["type"], r["task"]): r for r in rows}


def warm_up() -> None:
    """What every process would otherwise do for itself: imports, and the tracer's own tables."""
    import tiny

    import peftc
    from peftc.capture import capture

    program = capture(tiny.build("bert", "masked-lm"))
    for method in METHODS:
        peftc.apply({"peftc": 1, "name": method, "insert": SPECS[method]}, program)
    gc.collect()
    gc.freeze()


def sweep(wanted: list[str]) -> None:
    """Run what has no result of this code yet, or the wanted types again; text first."""
    import tiny

    warm_up()
    done = results()
    known = (*tiny.types(), *tiny.senses())
    waiting = [k for k in known if done.get(k, {}).get("source") != source()]
    for name, task in [k for w in wanted for k in known if k[0] == w] if wanted else waiting:
        row = run_one(name, task)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        marks = (mark(row, m) or row.get("stage", "") for m in METHODS)
        print(name, row.get("seconds", ""), *marks, sep="  ", flush=True)
    done = results()
    lines = [json.dumps(done[key]) for key in sorted(done)]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_table(list(done.values()))
    print(Counter(r.get("stage", "ok") for r in done.values()))


if __name__ == "__main__":
    import os
    import warnings

    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parent))
    if sys.argv[1:2] == ["--table"]:
        write_table(list(results().values()))
    else:
        sweep(sys.argv[1:])
