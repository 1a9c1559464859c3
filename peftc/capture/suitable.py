"""Whether a model is one that can be captured as it is: plain, whole, and by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

from peftc.capture.inputs import text_config
from peftc.ground.diagnostics import PeftcError, error

# Libraries whose modules stand inside a model that they have changed.
ADAPTER_LIBRARIES = ("peft", "adapters")
UNQUANTISED = (
    "give the model that was quantised, not the quantised one",
    "or undo it: model.dequantize().save_pretrained(FOLDER), and give that folder",
)


def check_suitable(model: Any) -> None:
    """Refuse a model that is wrapped, adapted, quantised, offloaded or resized by half.

    Raises:
        PeftcError: E208 for a quantised model, E209 for one that is not whole in memory, E210
            for one with another library's adapters, E211 for what is no `PreTrainedModel`, E214
            where its embeddings are not of the size that its config says.
    """
    if found := adapted(model):
        raise error(
            "E210",
            f"{type(model).__name__} has adapters of another library in it: "
            f"{type(found).__module__}.{type(found).__name__}",
            help=(
                "merge them into the base first: model.merge_and_unload()",
                "or carry them over: peftc import CHECKPOINT --model BASE -o DIR",
            ),
        )
    if not isinstance(model, PreTrainedModel):
        raise no_model(model)
    check_plain_numbers(model)
    check_in_memory(model)
    check_vocabulary(model)


def adapted(model: Any) -> nn.Module | None:
    """The first module of a model that an adapter library made."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next(
        (m for m in modules if type(m).__module__.partition(".")[0] in ADAPTER_LIBRARIES), None
    )


def no_model(model: Any) -> PeftcError:
    """E211, with the way to the model inside a wrapper."""
    inside = next(
        ((n, m) for n, m in model.named_modules() if isinstance(m, PreTrainedModel)), None
    )
    if inside is not None:
        return error(
            "E211",
            f"{type(model).__name__} is a wrapper around {type(inside[1]).__name__}",
            help=(f"give the model itself: model.{inside[0]}",),
        )
    return error(
        "E211",
        f"{type(model).__name__} is no model of transformers",
        notes=("inputs, outputs and heads are read off a `PreTrainedModel` and its config",),
        help=(
            "put the network into a subclass of `PreTrainedModel` with a `PretrainedConfig`",
            "or give a folder or a hub name",
        ),
    )


def check_plain_numbers(model: PreTrainedModel) -> None:
    """Refuse weights that are not the numbers that the model computes with.

    Raises:
        PeftcError: E208.
    """
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    packed = [n for n, m in model.named_modules() if hasattr(m, "_packed_params")]
    packed += [n for n, p in model.named_parameters() if is_packed(p)]
    if method is None and not packed:
        return
    how = getattr(getattr(method, "quant_method", None), "value", None)
    raise error(
        "E208",
        f"{type(model).__name__} is quantised" + (f" with {how}" if how else ""),
        notes=(f"{packed[0]} holds packed numbers",) if packed else (),
        help=UNQUANTISED,
    )


def is_packed(parameter: Tensor) -> bool:
    """Whether a parameter has numbers of one byte, or is a tensor of a class of its own."""
    if isinstance(parameter, FakeTensor):
        return False
    narrow = parameter.dtype.itemsize == 1 and parameter.dtype != torch.bool
    return narrow or type(parameter.data) is not Tensor


def check_in_memory(model: PreTrainedModel) -> None:
    """Refuse weights that are elsewhere: on disk, or fetched by hooks, or on several devices.

    Raises:
        PeftcError: E209.
    """
    devices = {
        p.device.type if p.device.type == "meta" else str(p.device) for p in model.parameters()
    }
    hooked = any(hasattr(m, "_hf_hook") for m in model.modules())
    if len(devices) < 2 and not ("meta" in devices and hooked):
        return
    where = ", ".join(sorted(d.replace("meta", "not in memory") for d in devices))
    raise error(
        "E209",
        f"{type(model).__name__} is not whole on one device: {where}",
        help=(
            "load it without offloading: from_pretrained(FOLDER), without device_map",
            "or leave the loading to peftc: give the folder or the hub name",
        ),
    )


def check_vocabulary(model: PreTrainedModel) -> None:
    """Refuse embeddings with fewer rows than the config says that there are ids.

    Raises:
        PeftcError: E214.
    """
    if model.main_input_name != "input_ids":
        return
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return  # it reads ids in a way of its own
    wanted = getattr(text_config(model.config), "vocab_size", None)
    rows = getattr(table, "num_embeddings", None)
    if isinstance(wanted, int) and isinstance(rows, int) and rows < wanted:
        raise error(
            "E214",
            f"the embeddings of {type(model).__name__} have {rows} rows, "
            f"its config says {wanted} ids",
            help=(
                "resize them with model.resize_token_embeddings(N), which sets the config too",
                "or set model.config.vocab_size",
            ),
        )
