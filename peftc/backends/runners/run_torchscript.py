"""python run_torchscript.py MODEL INPUTS.npz OUTPUTS.npz: run a TorchScript file, torch alone."""

import sys
import warnings

import numpy as np
import torch


def main(model: str, inputs: str, outputs: str) -> None:
    """Run the model on each numbered set of inputs, in the file's order: keys `<set>/<name>`."""
    warnings.simplefilter("ignore")
    module = torch.jit.load(model)
    given: dict[str, list[torch.Tensor]] = {}
    with np.load(inputs) as file:
        for key in file.files:
            given.setdefault(key.split("/", 1)[0], []).append(torch.from_numpy(file[key]))
    results = {}
    with torch.no_grad():
        for group, values in given.items():
            returned = module(*values)
            returned = returned if isinstance(returned, tuple) else (returned,)
            for k, value in enumerate(returned):
                results[f"{group}/{k}"] = value.numpy()
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:4])
