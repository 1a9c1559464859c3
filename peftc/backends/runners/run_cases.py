"""python run_cases.py RUNNER MODEL INPUTS.npz OUTPUTS.npz [MORE]: run a model on sets of inputs.

RUNNER is the script of a format; its `opened(model, 0, *MORE)` gives what binds inputs to the
model. In both archives keys are `<set>/<name>`; outputs without names are numbered.
"""

import runpy
import sys

import numpy as np


def feeds(path: str) -> dict[str, dict[str, np.ndarray]]:
    """Sets of inputs, in the file's order."""
    given: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            group, name = key.split("/", 1)
            given.setdefault(group, {})[name] = file[key]
    return given


def named(returned):
    """Names and values of what a call has returned."""
    if isinstance(returned, dict):
        return returned.items()
    return enumerate(returned if isinstance(returned, list | tuple) else (returned,))


def array(value) -> np.ndarray:
    """A value as numpy has it, which knows no bfloat16."""
    if isinstance(value, np.ndarray):
        return value
    value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return value.cpu().numpy()


def main(runner: str, model: str, inputs: str, outputs: str, *more: str) -> None:
    """Run the model on each set of inputs."""
    bound = runpy.run_path(runner)["opened"](model, 0, *more)
    results = {}
    for group, feed in feeds(inputs).items():
        for name, value in named(bound(feed)()):
            results[f"{group}/{name}"] = array(value)
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
