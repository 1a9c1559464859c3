"""Bottlenecks of the `adapters` library: Houlsby's, Pfeiffer's and the parallel one."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from torch import Tensor

from peftc.dataflow.naming import numbered_path
from peftc.dataflow.site import Site
from peftc.ground.diagnostics import error
from peftc.interop.checkpoint import CONFIG, NOTHING, Checkpoint
from peftc.interop.draft import Draft, Found, Places, Reader

KEY = re.compile(r"(.+)\.adapters\.[^.]+\.(adapter_down\.\d+|adapter_up|adapter_norm_after)\.(\w+)")
# Containers that are named after the place and not after the module they are in.
ROLES = {
    "attention_adapters": "attn.out",
    "cross_attention_adapters": "cross.out",
    "output_adapters": "ffn.out",
}
ACTIVATIONS = {
    "relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "tanh": "tanh", "sigmoid": "sigmoid",
    "leakyrelu": "leaky_relu",
}  # fmt: skip
# Options with which the bottleneck is another function, and the values that are none of it.
PLAIN: dict[str, tuple[Any, ...]] = {
    "architecture": (None,),
    "use_gating": (False, None),
    "residual_before_ln": (True, None),
    "adapter_residual_before_ln": (False, None),
    "ln_before": (False, None),
    "phm_layer": (False, None),
    "inv_adapter": (None, False),
    "stochastic_depth": (0.0, 0, None),
    "original_ln_after": (True, None),
    "init_weights_seed": (None,),
}
KNOWN = (
    *PLAIN, "mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "scaling",
    "is_parallel", "original_ln_before", "ln_after", "init_weights", "dropout", "leave_out",
    "cross_adapter", "inv_adapter_reduction_factor", "factorized_phm_W", "factorized_phm_rule",
    "hypercomplex_nonlinearity", "learn_phm", "phm_bias", "phm_c_init", "phm_dim", "phm_init_range",
    "phm_rank", "shared_W_phm", "shared_phm_rule",
)  # fmt: skip
HEADS = ("model_head.safetensors", "pytorch_model_head.bin", "head_config.json")


class FromAdapters(Reader):
    """h + s up(act(down(x))), x being h itself, the stream after its norm, or the block's input."""

    kinds: ClassVar[tuple[str, ...]] = ("ADAPTERS",)
    about: ClassVar[str] = "bottleneck adapters"

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse other methods of the library, and bottlenecks that are another function."""
        config = checkpoint.config["config"]
        where = checkpoint.folder / CONFIG
        bad = {k: config[k] for k, fine in PLAIN.items() if k in config and config[k] not in fine}
        if str(config.get("non_linearity")).lower() not in ACTIVATIONS:
            bad["non_linearity"] = config.get("non_linearity")
        if not isinstance(config.get("scaling", 1.0), int | float):
            bad["scaling"] = config["scaling"]
        unknown = [k for k in config if k not in KNOWN and config[k] not in NOTHING]
        if bad or unknown:
            raise error(
                "E312",
                f"{where}: these options have no equivalent: {', '.join([*bad, *unknown])}",
                notes=tuple(f"{k} is {v!r}" for k, v in bad.items()),
                help=("bottlenecks of Houlsby, Pfeiffer and the parallel kind can be imported",),
            )
        if head := next((h for h in HEADS if (checkpoint.folder / h).exists()), None):
            raise error(
                "E312",
                f"{checkpoint.folder / head}: a head of the `adapters` library has no equivalent",
                help=("remove the head's files to import the adapter alone",),
            )

    def draft(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], places: Places) -> Draft:
        """A bottleneck for every container of adapters that the file names."""
        draft = Draft("adapter")
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            match = KEY.fullmatch(key)
            if match is None:
                raise error("E313", f"{key} is no tensor of a bottleneck")
            part = match[2].partition(".")[0].removeprefix("adapter_")
            part = {"norm_after": "after"}.get(part, part)
            groups.setdefault(match[1], {})[f"{part}.{match[3]}"] = value
        config = checkpoint.config["config"]
        for container, parts in groups.items():
            if not {"down.weight", "up.weight"} <= parts.keys():
                raise error("E313", f"{container} has {', '.join(parts)}, no down and up")
            options: dict[str, Any] = {
                "dim": parts["down.weight"].shape[0],
                "act": ACTIVATIONS[config["non_linearity"].lower()],
                "bias": "down.bias" in parts,
            }
            if dropout := config.get("dropout"):
                options["dropout"] = float(dropout)
            scale = config.get("scaling", 1.0)
            if "after.weight" in parts:
                options["norm"] = "after"
                # The norm reads what is scaled: its epsilon is small beside that, or not.
                parts |= {n: scale * parts[n] for n in parts if n.startswith("up.")}
                scale = 1.0
            compose = "add" if scale == 1 else {"add": {"scale": scale}}
            more = {}
            if config.get("is_parallel"):
                more["form"] = "parallel"
            elif config.get("original_ln_before"):
                more["reads"] = "stream"
            site = self.site(container, places)
            draft.pieces.append(Found(site, {"bottleneck": options}, compose, parts, more))
        return draft

    def site(self, container: str, places: Places) -> Site:
        """The place of a container: the branch whose last module is in it, or as it is named."""
        path, _, last = container.rpartition(".")
        for candidate in (container, container.partition(".")[2]):
            found = [
                s
                for s in places.sites.sites
                if s.role in ("attn.out", "cross.out", "ffn.out")
                and s.module.startswith(candidate + ".")
            ]
            if len(found) == 1:
                return found[0]
        if last in ROLES:
            layer = numbered_path(path)
            for s in places.sites.sites:
                if s.role == ROLES[last] and numbered_path(s.module) in (
                    layer, layer.partition(".")[2],
                ):  # fmt: skip
                    return s
        raise places.absent(container)
