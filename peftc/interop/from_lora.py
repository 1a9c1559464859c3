"""LoRA and DoRA checkpoints of PEFT: y = W x + b + s (B A x + c), s by module."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from peftc.capture.program import Program, attribute
from peftc.dataflow.site import Site
from peftc.ground.diagnostics import error
from peftc.interop.checkpoint import CONFIG, Checkpoint, check_keys, number
from peftc.interop.common import COMMON, PREFIX, base_name
from peftc.interop.draft import Draft, Found, Places, Reader

PART = re.compile(
    r"(.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<table>[AB])|lora_B\.(?P<bias>bias)"
    r"|lora_(?P<m>magnitude_vector)(?:\.weight)?)"
)
KNOWN = (
    *COMMON, "r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "use_dora", "lora_bias", "qalora_group_size", "megatron_core", "eva_config",
)  # fmt: skip
UNSUPPORTED = {
    "alora_invocation_tokens": "the update applies only after some tokens (aLoRA)",
    "arrow_config": "a router chooses among adapters",
    "corda_config": "the base was changed when training began (CorDA)",
    "ensure_weight_tying": "updates of tied weights share tensors",
    "kasa_config": "the base was changed when training began (KaSA)",
    "layer_replication": "layers of the base are repeated",
    "loftq_config": "the base was quantised and changed (LoftQ)",
    "lora_ga_config": "the base was changed when training began (LoRA-GA)",
    "megatron_config": "layers of Megatron",
    "monteclora_config": "the update is sampled",
    "target_parameters": "parameters outside of linears (experts) are changed",
    "trainable_token_indices": "single rows of the embedding are trained",
    "use_bdlora": "A or B is block-diagonal",
    "use_qalora": "inputs are pooled before A (QALoRA)",
    "velora_config": "inputs are projected while training (VeLoRA)",
}
# How A and B were drawn, where the base stayed what it was.
INITS = (True, False, "gaussian", "eva", "orthogonal", "mini")


class FromLora(Reader):
    """`lora_A`, `lora_B`, their biases and magnitudes, and base weights saved beside them."""

    kinds: ClassVar[tuple[str, ...]] = ("LORA",)
    about: ClassVar[str] = "low-rank updates (LoRA)"

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse the variants of LoRA that are another method."""
        check_keys(checkpoint, KNOWN, UNSUPPORTED)
        init = checkpoint.config.get("init_lora_weights", True)
        if init not in INITS:
            raise error(
                "E312",
                f"{checkpoint.folder / CONFIG}: init_lora_weights is {init!r}",
                notes=("this start changes the base weights, which the checkpoint does not hold",),
                help=("save it with path_initial_model_for_weight_conversion: then it is LoRA",),
            )
        number(checkpoint, "lora_alpha")

    def draft(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], places: Places) -> Draft:
        """A low-rank piece for every module that the file names."""
        dora = bool(checkpoint.config.get("use_dora"))
        draft = Draft("dora" if dora else "lora")
        modules: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            match = PART.fullmatch(key.removeprefix(PREFIX))
            if match and key.startswith(PREFIX):
                kind = {"bias": "b", "magnitude_vector": "m"}
                part = match["linear"] or match["table"] or kind[match["bias"] or match["m"]]
                modules.setdefault(match[1], {})[part] = value
            else:
                frozen = ".base_layer." in key and not key.endswith(".bias")
                places.take_base(draft, key, base_name(key, PREFIX), value, frozen=frozen)
        for path, parts in modules.items():
            draft.pieces.append(self.piece(checkpoint, places, path, parts, dora))
        return draft

    def piece(
        self,
        checkpoint: Checkpoint,
        places: Places,
        path: str,
        parts: dict[str, Tensor],
        dora: bool,
    ) -> Found:
        """The update of one module."""
        config = checkpoint.config
        expected = {"A", "B"} | ({"m"} if dora else set()) | ({"b"} & parts.keys())
        site = places.module(path)
        if parts.keys() != expected or (dora and site.weight is None):
            raise error(
                "E313",
                f"{path} has {', '.join(sorted(parts))} where {', '.join(sorted(expected))} "
                + ("of a linear " if dora else "")
                + "belong",
                help=("tensors are missing, or the configuration is another checkpoint's",),
            )
        rank = parts["A"].shape[0]
        said = pattern(config.get("rank_pattern"), path, config.get("r"))
        if said != rank:
            raise error("E313", f"{CONFIG} says rank {said} for {path}, its tensors have {rank}")
        alpha = pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        scale = number_of(scale * embedding_scale(site, places))
        options: dict[str, Any] = {"rank": rank}
        if (dropout := config.get("lora_dropout")) and site.lookup is None:
            options["dropout"] = float(dropout)
        tensors = {k: v.reshape(-1) if k == "m" else v for k, v in parts.items()}
        if dora:
            return Found(site, {"dora": {**options, "scale": scale}}, "add", tensors)
        if "b" in parts:
            options["bias"] = True
        return Found(site, {"low_rank": options}, {"add": {"scale": scale}}, tensors)


def pattern(patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
    """PEFT's rule: the value of the first pattern that the end of a module's path matches."""
    for name, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({name})$", path):
            return value
    return default


def number_of(value: float) -> float | int:
    """Whole numbers as such, which reads better in a spec."""
    return int(value) if float(value).is_integer() else float(value)


def embedding_scale(site: Site, places: Places) -> float:
    """What an embedding's module multiplies its rows with, which PEFT applies to updates too."""
    return 1.0 if site.lookup is None else unscaled(places.program, site.h)[1]


def unscaled(program: Program, node: Any) -> tuple[fx.Node, float]:
    """The value behind products with constants, and their product."""
    factor = 1.0
    while node.target is torch.ops.aten.mul.Tensor:
        value, by = node.args[:2]
        if isinstance(by, fx.Node):
            if by.op != "get_attr" or by.meta["val"].numel() != 1:
                break
            by = attribute(program, str(by.target)).item()
        node, factor = value, factor * float(by)
    return node, factor
