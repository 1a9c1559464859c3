"""python run_peft.py CONFIG INPUTS.npz OUTPUTS.npz BASE CLASS TRIM: run a checkpoint with PEFT.

The checkpoint is the folder of CONFIG, BASE a model folder of the transformers class CLASS; the
first TRIM positions of outputs by token are cut.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import PeftModel


def main(config: str, inputs: str, outputs: str, base: str, name: str, trim: str) -> None:
    """Run the model on each numbered set of inputs: keys are `<set>/<name>`."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    given: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(inputs) as file:
        for key in file.files:
            group, own = key.split("/", 1)
            given.setdefault(group, {})[own] = torch.from_numpy(file[key])
    model = getattr(transformers, name).from_pretrained(base)
    model.config.use_cache = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, str(Path(config).absolute().parent)).eval()
    results = {}
    with torch.no_grad():
        for group, values in given.items():
            length = values["input_ids"].shape[1]
            for key, value in adapted(**values).items():
                if isinstance(value, torch.Tensor):
                    longer = value.dim() > 1 and value.shape[1] == length + int(trim)
                    cut = value[:, int(trim) :] if longer else value
                    results[f"{group}/{key}"] = cut.float().numpy()
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:7])
