"""Runs a checkpoint, the folder of its config, with PEFT."""

import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel


def opened(config, _threads, base, name, trim):
    """What binds a set of inputs to the checkpoint on the transformers class `name` from `base`.

    The first `trim` positions of outputs by token are cut.
    """
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    factory = getattr(transformers, name)
    if not (isinstance(factory, type) and issubclass(factory, transformers.PreTrainedModel)):
        raise SystemExit(f"{name} is no model class of transformers")
    model = factory.from_pretrained(base)
    model.config.use_cache = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, str(Path(config).absolute().parent)).eval()

    def bound(inputs):
        values = {n: torch.from_numpy(v) for n, v in inputs.items()}
        whole = values["input_ids"].shape[1] + int(trim)

        def cut(value):
            longer = value.dim() > 1 and value.shape[1] == whole
            return value[:, int(trim) :] if longer else value

        def run():
            with torch.no_grad():
                found = adapted(**values).items()
            return {k: cut(v) for k, v in found if isinstance(v, torch.Tensor)}

        return run

    return bound
