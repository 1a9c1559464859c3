"""Bottlenecks of the `adapters` library against the formula, with hooks on the plain model."""

from __future__ import annotations

import json

import pytest
import reference
import torch
import zoo
from safetensors.torch import save_file
from tolerances import PARITY
from torch.nn import functional

import peftc
from peftc.ground.diagnostics import PeftcError

HOUSLBY = {
    "mh_adapter": True, "output_adapter": True, "reduction_factor": 4, "non_linearity": "swish",
    "original_ln_before": False, "original_ln_after": True, "residual_before_ln": True,
    "adapter_residual_before_ln": False, "ln_before": False, "ln_after": False, "scaling": 1.0,
    "is_parallel": False, "use_gating": False, "dropout": 0.0, "init_weights": "bert",
    "inv_adapter": None, "phm_layer": False, "leave_out": [], "architecture": None,
}  # fmt: skip
PFEIFFER = {**HOUSLBY, "mh_adapter": False, "original_ln_before": True, "non_linearity": "relu"}
PARALLEL = {**PFEIFFER, "is_parallel": True, "original_ln_before": False, "scaling": 4.0}
NORMED = {**HOUSLBY, "ln_after": True, "scaling": 0.01, "non_linearity": "GELU_new"}
PLACES = {"mh_adapter": "attention.output", "output_adapter": "output"}


def checkpoint(folder, config, layers=3, width=24, dim=6):
    """A folder with the layout of the library, and its tensors by (layer, place)."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(2)
    values, found = {}, {}
    for layer in range(layers):
        for option, place in PLACES.items():
            if not config[option]:
                continue
            parts = {
                "adapter_down.0.weight": (dim, width), "adapter_down.0.bias": (dim,),
                "adapter_up.weight": (width, dim), "adapter_up.bias": (width,),
            }  # fmt: skip
            if config["ln_after"]:
                parts |= {f"adapter_norm_after.{n}": (width,) for n in ("weight", "bias")}
            own = {n: 0.3 * torch.randn(s, generator=generator) for n, s in parts.items()}
            found[layer, option] = list(own.values())
            prefix = f"bert.encoder.layer.{layer}.{place}.adapters.mine."
            values |= {prefix + n: v for n, v in own.items()}
    whole = {"model_type": "bert", "hidden_size": width, "name": "mine", "version": "1.3.0"}
    (folder / "adapter_config.json").write_text(json.dumps({**whole, "config": config}))
    save_file(values, folder / "adapter.safetensors")
    return folder, found


@pytest.mark.parametrize(
    ("config", "act"),
    [
        (HOUSLBY, functional.silu), (PFEIFFER, functional.relu), (PARALLEL, functional.relu),
        (NORMED, lambda x: functional.gelu(x, approximate="tanh")),
    ],
    ids=["houlsby", "pfeiffer", "parallel", "normed"],
)  # fmt: skip
def test_a_bottleneck_is_the_formula(config, act, tmp_path):
    folder, found = checkpoint(tmp_path / "c", config)
    graph = peftc.import_checkpoint(folder, zoo.captured("bert", "sequence-classification"))
    model = zoo.model("bert", "sequence-classification")
    handles, seen = [], {}

    def delta(parts, x):
        down, down_bias, up, up_bias, *norm = parts
        hidden = act(functional.linear(x, down, down_bias))
        change = config["scaling"] * functional.linear(hidden, up, up_bias)
        return functional.layer_norm(change, (len(up),), *norm) if norm else change

    def hook(layer, option, parts):
        path = f"bert.encoder.layer.{layer}.{PLACES[option]}"
        block = model.get_submodule(path)
        whole = model.get_submodule(f"bert.encoder.layer.{layer}.intermediate")

        def keep(_module, args):
            seen[path] = args[0]

        def change(module, args, h):
            x = h
            if config["is_parallel"]:
                x = seen[path]
            elif config["original_ln_before"]:
                x = module.LayerNorm(h_of(module, args[0]) + args[1])
            return module.LayerNorm(h_of(module, args[0]) + delta(parts, x) + args[1])

        def h_of(module, value):
            return module.dense(value)

        def sequential(module, args, _output):
            h = h_of(module, args[0])
            return change(module, args, h)

        handles.append(whole.register_forward_pre_hook(keep))
        handles.append(block.register_forward_hook(sequential))

    for (layer, option), parts in found.items():
        hook(layer, option, parts)
    try:
        for shape in ((3, 8), (2, 13)):
            inputs = zoo.inputs(model, *shape)
            with torch.no_grad():
                want, got = model(**inputs).logits, graph(**inputs).logits
            torch.testing.assert_close(got, want, **PARITY[got.dtype])
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        assert (model(**inputs).logits - got).abs().max() > 1e-2
    assert len(reference.placed(graph, "adapter")) == len(found)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"use_gating": True}, "use_gating"),
        ({"scaling": "learned"}, "scaling"),
        ({"phm_layer": True}, "phm_layer"),
        ({"architecture": "lora", "r": 8}, "architecture, non_linearity, r"),
    ],
)
def test_another_function_is_refused(change, why, tmp_path):
    config = {**HOUSLBY, **change}
    if "architecture" in change:
        config.pop("non_linearity")
    folder, _ = checkpoint(tmp_path / "c", config)
    with pytest.raises(PeftcError) as refusal:
        peftc.import_checkpoint(folder, None)
    text = str(refusal.value)
    assert text.startswith(
        f"error[E312]: {folder / 'adapter_config.json'}: these options have no equivalent: {why}\n"
    )
