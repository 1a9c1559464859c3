"""Runs a TorchScript file, with torch alone."""

import json
import warnings
from pathlib import Path

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
