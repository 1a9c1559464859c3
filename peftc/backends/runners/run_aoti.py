"""Runs an AOTInductor package, with torch alone.

`load(folder)` and `give(model, folder)` are also what a server needs of this file.
"""

import json
from pathlib import Path
from typing import Any

import torch


def facts_of(folder: Path) -> dict[str, Any]:
    """What the export says of itself."""
    return json.loads((folder / "peftc.export.json").read_text(encoding="utf-8"))


def load(folder: Path):
    """The compiled model of an export, its weights in place where they lie beside it."""
    facts = facts_of(folder)
    model: Any = torch._inductor.aoti_load_package(str(folder / facts["file"]))
    model.held = {}
    if facts["weights"] == "link":
        found = beside(folder)
        hold(model, {n: found[n] for n in model.get_constant_fqns()})
    return model


def give(model, folder: Path) -> None:
    """Give a loaded model the inserted tensors of another export of the same spec."""
    taken = set(model.get_constant_fqns())
    hold(model, {n: t for n, t in beside(folder).items() if n.startswith("peft.") and n in taken})


def hold(model, tensors: dict[str, torch.Tensor]) -> None:
    """Let the model read these tensors where they are; it keeps pointers, so they are kept too."""
    model.load_constants(tensors, check_full_update=not model.held, user_managed=True)
    model.held = {**model.held, **tensors}


def beside(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that constants.json lists, over the mapped files: no byte is copied."""
    listed = json.loads((folder / "constants.json").read_text(encoding="utf-8"))
    device = facts_of(folder)["device"]
    mapped = {}
    for one in listed.values():
        path = folder / one["file"]
        if path not in mapped:
            size = path.stat().st_size
            mapped[path] = torch.from_file(str(path), size=size, dtype=torch.uint8)
    tensors = {}
    for name, one in listed.items():
        dtype = getattr(torch, one["dtype"])
        data = mapped[folder / one["file"]][one["offset"] : one["offset"] + one["bytes"]]
        data = data.clone() if one["offset"] % dtype.itemsize else data
        tensors[name] = data.view(dtype).reshape(one["shape"]).to(device)
    return tensors


def opened(model, threads=0):
    """What binds inputs, in the file's order, to the model, as a call that runs it."""
    if threads:
        torch.set_num_threads(threads)
    folder = Path(model).absolute().parent
    compiled = load(folder)
    device = facts_of(folder)["device"]

    def bound(inputs):
        values = [torch.from_numpy(v).to(device) for v in inputs.values()]

        def run():
            with torch.no_grad():
                return compiled(*values)

        return run

    return bound
