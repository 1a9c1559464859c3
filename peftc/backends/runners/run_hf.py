"""Runs a checkpoint, the folder of its file, with transformers alone."""

import json
import warnings
from pathlib import Path

import torch
import transformers
from torch.utils._pytree import tree_leaves


def opened(file, threads=0):
    """What binds a set of inputs to the model, as a call that gives its tensors in turn."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    folder = Path(file).absolute().parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "peftc.export.json").read_text(encoding="utf-8"))
    device = facts.get("device", "cpu")
    factory = getattr(transformers, config["architectures"][0])
    if not (isinstance(factory, type) and issubclass(factory, transformers.PreTrainedModel)):
        raise SystemExit(f"{config['architectures'][0]} is no model class of transformers")
    model = factory.from_pretrained(folder, dtype="auto").eval().to(device)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False

    def bound(inputs):
        feed = {n: torch.from_numpy(v).to(device) for n, v in inputs.items()}

        def run():
            with torch.no_grad():
                leaves = tree_leaves(tuple(model(**feed).values()))
            return [v for v in leaves if isinstance(v, torch.Tensor)]

        return run

    return bound
