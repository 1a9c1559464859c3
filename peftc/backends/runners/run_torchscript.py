"""python run_torchscript.py MODEL INPUTS.npz OUTPUTS.npz: run a TorchScript file, torch alone."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch


def opened(model, threads=0):
    """What binds inputs, in the file's order, to the model, as a call that runs it."""
    warnings.simplefilter("ignore")
    if threads:
        torch.set_num_threads(threads)
    facts = json.loads(Path(model).with_name("peftc.export.json").read_text(encoding="utf-8"))
    device = facts.get("device", "cpu")
    module = torch.jit.load(model, map_location=device)

    def bound(inputs):
        values = [torch.from_numpy(v).to(device) for v in inputs.values()]

        def run():
            with torch.no_grad():
                return module(*values)

        return run

    return bound


def main(model: str, inputs: str, outputs: str) -> None:
    """Run the model on each numbered set of inputs, in the file's order: keys `<set>/<name>`."""
    bound = opened(model)
    given: dict[str, dict[str, np.ndarray]] = {}
    with np.load(inputs) as file:
        for key in file.files:
            group, name = key.split("/", 1)
            given.setdefault(group, {})[name] = file[key]
    results = {}
    for group, feed in given.items():
        returned = bound(feed)()
        for k, value in enumerate(returned if isinstance(returned, tuple) else (returned,)):
            results[f"{group}/{k}"] = value.cpu().numpy()
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:4])
