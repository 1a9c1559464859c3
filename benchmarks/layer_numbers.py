"""The layer numbers of sites beside the numbers in their module paths, over every type.

    python benchmarks/layer_numbers.py              # the types that have no result yet
    python benchmarks/layer_numbers.py falcon gptj  # these types again, in this order
    python benchmarks/layer_numbers.py --table      # what differs in the results there are

Sites are found by dataflow; the path of the module that made a value is only a check. A model whose
layers are entries of a ModuleList is to have the same numbers in both. Results are in
`benchmarks/layer_numbers.jsonl`, one row a type.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".jsonl")
# Why the numbers of a type differ, where the path is the one that misleads.
KNOWN = {
    **dict.fromkeys(
        ("nemotron_h", "nemo_speechlm"),
        "each module has one block: a layer here is a mixer with the feed-forward behind it",
    ),
    "hrm_text": "its layers run several times, and are numbered as they run",
    "inkling2_text": "the first attention joins no stream (docs/coverage.md)",
    "inkling2_loop_text": "the first attention joins no stream (docs/coverage.md)",
}


def case(name: str, task: str) -> dict[str, Any]:
    """The sites of one type: name, role, stack, layer and module path of each."""
    import tiny

    from peftc.capture import capture
    from peftc.dataflow import find_sites

    result: dict[str, Any] = {"type": name, "task": task}
    try:
        sites = find_sites(capture(tiny.build(name, task)))
    except Exception as cause:
        return {**result, "error": f"{type(cause).__name__}: {str(cause).splitlines()[0][:160]}"}
    places = [
        (s.role, s.stack, s.layer, s.module)
        for s in (*sites.sites, *sites.attentions)
        if s.layer is not None
    ]
    return {**result, "layers": sites.layers, "places": places}


def differing(places: Iterable[tuple[str, str, int, str]]) -> list[tuple[str, str, int, str]]:
    """The places whose layer is not the first number in their module's path.

    A module that serves several layers has one number for all of them, and says nothing.
    """
    places = [tuple(p) for p in places]
    layers: dict[tuple[str, str, str], set[int]] = {}
    for role, stack, layer, module in places:
        layers.setdefault((role, stack, module), set()).add(layer)
    return [
        (role, stack, layer, module)
        for role, stack, layer, module in places
        if (number := first_number(module)) is not None
        and len(layers[role, stack, module]) == 1
        and number != layer
    ]


def first_number(path: str) -> int | None:
    """The first number in a module path: the place in the list of a model's layers."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def results() -> dict[str, Any]:
    """The last row of each type."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(t) for t in RESULTS.read_text(encoding="utf-8").split("\n") if t]
    return {r["type"]: r for r in rows}


def table(rows: Mapping[str, Any]) -> None:
    """Print what differs, or could not be captured."""
    for name, row in sorted(rows.items()):
        found = differing(row.get("places", ()))
        for role in dict.fromkeys(p[0] for p in found):
            _, _, layer, module = next(p for p in found if p[0] == role)
            print(f"{name}: {role} {layer} is {module}; {KNOWN.get(name, 'not explained')}")
    failed = [n for n, row in rows.items() if "error" in row]
    print(f"{len(rows)} types, {len(failed)} without sites: {', '.join(sorted(failed))}")


def main(arguments: list[str]) -> None:
    """Run what is asked for."""
    import tiny

    done = results()
    if arguments == ["--table"]:
        return table(done)
    everything = dict([*tiny.types(), *tiny.senses()])
    wanted = arguments or [n for n in everything if n not in done]
    for k, name in enumerate(wanted):
        row = case(name, everything[name])
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{k + 1}/{len(wanted)} {name}: {row.get('error', row.get('layers'))}", flush=True)
    return table(results())


if __name__ == "__main__":
    main(sys.argv[1:])
