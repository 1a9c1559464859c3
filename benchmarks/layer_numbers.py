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
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".jsonl")


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


def main(arguments: list[str]) -> None:
    """Run what is asked for."""
    import tiny

    done = {}
    if RESULTS.exists():
        rows = [json.loads(t) for t in RESULTS.read_text(encoding="utf-8").split("\n") if t]
        done = {r["type"]: r for r in rows}
    everything = dict([*tiny.types(), *tiny.senses()])
    wanted = arguments or [n for n in everything if n not in done]
    for k, name in enumerate(wanted):
        row = case(name, everything[name])
        done[name] = row
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{k + 1}/{len(wanted)} {name}: {row.get('error', row.get('layers'))}", flush=True)


if __name__ == "__main__":
    main([a for a in sys.argv[1:]])
