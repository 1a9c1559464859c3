"""A checkpoint of PEFT that is being written, and base weights saved in it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from peftc.capture.piece_name import is_inserted
from peftc.capture.program import Program
from peftc.rewrite.applied import Applied

# Modules that PEFT saves for a task without being told, by the end of their path.
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@dataclass
class Written:
    """Configuration and tensors; `agrees` says whether a configuration means the same numbers."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    agrees: Callable[[dict[str, Any]], bool]


def options(kind: str, task: str | None, **more: Any) -> dict[str, Any]:
    """A configuration: what all methods have, and a method's own."""
    return {
        "peft_type": kind, "task_type": task, "inference_mode": True, "auto_mapping": None,
        "revision": None, **more,
    }  # fmt: skip


def base_weights(
    program: Program, applied: Applied, task: str | None, prefix: str, targets: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's own trained parameters under PEFT's names, and the options that save them.

    Biases of the changed modules are `bias: lora_only`, all biases `bias: all`; anything else is
    the whole module it is in, under `modules_to_save`.

    Raises:
        PeftcError: E408 where PEFT would save or change other parameters as well.
    """
    from peftc.interop.common import cannot

    parameters = {n: p for n, p in program.named_parameters() if not is_inserted(n)}
    trained = {n for n, p in parameters.items() if p.requires_grad}
    heads = HEADS.get(task or "", ())
    chosen = {n for n in parameters if any(a.endswith(heads) for a in ancestors(n))}
    left = trained - chosen
    config: dict[str, Any] = {"modules_to_save": None}
    biases = {n for n in parameters if "bias" in n} - chosen
    own = {n for n in biases if n.rpartition(".")[0] in targets}
    if targets:
        config["bias"] = "none"
        if own and own <= left:
            every = biases <= left
            config["bias"] = "all" if every else "lora_only"
            chosen |= biases if every else own
            left -= biases if every else own
    modules: list[str] = []
    for name in sorted(left):
        if any(name.startswith(m + ".") for m in modules):
            continue
        path = top_module(name, parameters, trained, targets)
        if path is None or path in targets:
            raise cannot(
                f"`{name}` is trained, and PEFT trains the bias of all updated modules or none"
            )
        modules.append(path)
    for path in modules:
        chosen |= {n for n in parameters if n.startswith(path + ".")}
    if modules or heads:
        config["modules_to_save"] = [*modules, *heads]
    keys = applied.origin.keys if applied.origin is not None else {}
    wrapped = {n: n.rpartition(".")[0] in targets for n in chosen}
    tensors = {
        keys.get(n) or prefix + (with_base_layer(n) if wrapped[n] else n): parameters[n].detach()
        for n in sorted(chosen)
    }
    return tensors, config


def with_base_layer(name: str) -> str:
    """The name of a parameter inside PEFT's wrapper of its module."""
    path, _, last = name.rpartition(".")
    return f"{path}.base_layer.{last}"


def ancestors(name: str) -> list[str]:
    """The paths of the modules that a parameter is in."""
    parts = name.split(".")[:-1]
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def top_module(
    name: str, parameters: Collection[str], trained: Collection[str], targets: Collection[str]
) -> str | None:
    """The outermost module around a parameter of which everything is trained, else its own."""
    best = name.rpartition(".")[0] or None
    for path in ancestors(name):
        inside = [n for n in parameters if n.startswith(path + ".")]
        if all(n in trained for n in inside) and not any(t.startswith(path + ".") for t in targets):
            return path
    return best
