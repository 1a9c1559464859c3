"""A folder that another library saved -> its configuration and its tensors, or a refusal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftc.ground.diagnostics import error

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter.safetensors", "pytorch_adapter.safetensors")
PICKLES = ("adapter_model.bin", "pytorch_adapter.bin")
NOTHING = (None, False, {}, [], "")  # values with which an option is not used


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: the configuration as it is written, and the path of the tensors."""

    folder: Path
    config: dict[str, Any]
    weights: Path

    @property
    def kind(self) -> str:
        """What readers are known by: the `peft_type`, or ADAPTERS for the `adapters` library."""
        if "peft_type" in self.config:
            return str(self.config["peft_type"])
        return "ADAPTERS" if isinstance(self.config.get("config"), dict) else ""

    def tensors(self) -> dict[str, Any]:
        """Every tensor of the file by its name.

        Raises:
            PeftcError: E303 where the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.weights)
        except (SafetensorError, OSError) as cause:
            raise error(
                "E303",
                f"{self.weights} cannot be read: {cause}",
                notes=(f"the file has {self.weights.stat().st_size:,} bytes",),
                help=("copy it again: a copy that stopped early looks like this",),
            ) from cause


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a checkpoint folder; no tensor is read.

    Raises:
        PeftcError: E310 where it is none, E311 where its tensors are a pickle, E303 where a file
            is damaged or missing.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise no_checkpoint(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as cause:
        raise error("E303", f"{path} cannot be read: {cause}") from cause
    if not isinstance(config, dict):
        raise error("E303", f"{path} holds no mapping")
    weights = next((folder / n for n in WEIGHTS if (folder / n).is_file()), None)
    if weights is not None:
        return Checkpoint(folder, config, weights)
    if pickle := next((n for n in PICKLES if (folder / n).is_file()), None):
        raise error(
            "E311",
            f"{folder / pickle} is a pickle, which can run code when it is opened",
            help=(
                "if you trust it, load it with the library that made it and save it again: "
                "both save safetensors (peft by default, adapters with use_safetensors=True)",
            ),
        )
    raise error(
        "E303",
        f"{folder} has {CONFIG} and no tensors",
        help=(f"expected one of: {', '.join(WEIGHTS)}",),
    )


def no_checkpoint(folder: Path) -> Exception:
    """E310, with the folders inside that are checkpoints."""
    if not folder.is_dir():
        return error("E310", f"{folder}: no such folder", help=("check the path",))
    inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
    if inside:
        return error(
            "E310",
            f"{folder} holds no checkpoint itself, but {len(inside)} inside",
            help=tuple(f"peftc import {shlex.quote(str(folder / n))} -o DIR" for n in inside[:5]),
        )
    return error(
        "E310",
        f"{folder} is no checkpoint: it has no {CONFIG}",
        help=("give the folder that `save_pretrained` of peft wrote",),
    )


def check_keys(checkpoint: Checkpoint, known: Iterable[str], unsupported: dict[str, str]) -> None:
    """Refuse options that change what the tensors mean and have no equivalent, all at once.

    `unsupported` says by option why it has none; an unknown key is refused unless it is off.

    Raises:
        PeftcError: E312 for an option without equivalent, E314 for unknown ones.
    """
    config = checkpoint.config
    used = {k: why for k, why in unsupported.items() if config.get(k) not in NOTHING}
    if used:
        raise error(
            "E312",
            f"{checkpoint.folder / CONFIG} uses what has no equivalent: {', '.join(used)}",
            notes=tuple(f"{k}: {why}" for k, why in used.items()),
            help=("merge it into the base with the library that made it",),
        )
    unknown = [k for k in config if k not in (*known, *unsupported)]
    unknown = [k for k in unknown if config[k] not in NOTHING]
    if unknown:
        raise error(
            "E314",
            f"{checkpoint.folder / CONFIG} has unknown options: {', '.join(sorted(unknown))}",
            notes=("they may change what the tensors mean",),
            help=("remove those that do not, or merge with the library that made it",),
        )


def number(checkpoint: Checkpoint, key: str, *, whole: bool = False) -> Any:
    """A positive number of the configuration.

    Raises:
        PeftcError: E314 where it is missing or none.
    """
    value = checkpoint.config.get(key)
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
        what = "whole number" if whole else "number"
        raise error(
            "E314",
            f"{checkpoint.folder / CONFIG}: `{key}` is {value!r}, not a positive {what}",
        )
    return value
