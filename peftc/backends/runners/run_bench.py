"""python run_bench.py RUNNER MODEL [MODEL] INPUTS.npz SETTINGS.json: time models, call by call.

Prints one JSON object. With two models their calls alternate, and which is first alternates too,
so that what else the machine does falls on both. With one model its memory is measured instead.
"""

import json
import runpy
import sys
import time
from pathlib import Path


def seconds(call) -> tuple[float, float]:
    """The time of one call, to the end of what it has a GPU do, and what the processor took."""
    torch = sys.modules.get("torch")
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def timed(models, given, settings) -> dict[str, list[list[tuple[float, float]]]]:
    """For each set of inputs the times of every call: a list for each model."""
    results = {}
    for group, feed in given.items():
        calls = [bound(feed) for bound in models]
        for call in calls:
            for _ in range(settings["warm_up"]):
                seconds(call)
        taken: list[list[tuple[float, float]]] = [[] for _ in calls]
        for k in range(settings["rounds"]):
            order = range(len(calls)) if k % 2 == 0 else range(len(calls) - 1, -1, -1)
            for m in order:
                taken[m].append(seconds(calls[m]))
        results[group] = taken
    return results


def memory() -> dict[str, int]:
    """Private bytes now, the most that this process ever had in memory, what a GPU has in use."""
    found = {}
    try:
        with open("/proc/self/smaps_rollup", encoding="utf-8") as file:
            lines = [line.split() for line in file]
        private = ("Private_Clean:", "Private_Dirty:")
        found["private"] = sum(int(t[1]) * 1024 for t in lines if t[0] in private)
        with open("/proc/self/status", encoding="utf-8") as file:
            peak = [line.split() for line in file if line.startswith("VmHWM:")]
        found["peak"] = int(peak[0][1]) * 1024
    except OSError:  # no Linux
        import resource

        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()  # compiled packages use no allocator of torch
        found["device"] = total - free
    return found


def main(runner: str, *rest: str) -> None:
    """Time two models or measure the memory of one."""
    *files, inputs, path = rest
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    opened = runpy.run_path(runner)["opened"]
    # -P: this script's own folder is not on its path.
    given = runpy.run_path(str(Path(__file__).with_name("run_cases.py")))["feeds"](inputs)
    before = memory()
    models = [opened(m, settings["threads"]) for m in files]
    result: dict = {"seconds": timed(models, given, settings)}
    if len(files) == 1:
        after = memory()
        result["memory"] = {k: v - (before[k] if k != "peak" else 0) for k, v in after.items()}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
