"""python run_hf.py FILE INPUTS.npz OUTPUTS.npz: transformers alone runs FILE's folder."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils._pytree import tree_leaves


def main(file: str, inputs: str, outputs: str) -> None:
    """Run the model on each numbered set of inputs: keys are `<set>/<name>`."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = Path(file).absolute().parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    factory = getattr(transformers, config["architectures"][0])
    model = factory.from_pretrained(folder, dtype="auto").eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    given: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(inputs) as archive:
        for key in archive.files:
            group, name = key.split("/", 1)
            given.setdefault(group, {})[name] = torch.from_numpy(archive[key])
    results = {}
    for group, feed in given.items():
        with torch.no_grad():
            leaves = tree_leaves(tuple(model(**feed).values()))
        for k, value in enumerate(v for v in leaves if isinstance(v, torch.Tensor)):
            value = value.float() if value.dtype == torch.bfloat16 else value
            results[f"{group}/{k}"] = value.numpy()
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:4])
