"""HF PEFT: `adapter_config.json` and `adapter_model.safetensors`, loaded on the same base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file

from peftc.api import APPLIED, Applied
from peftc.backends.base import Backend
from peftc.capture.load import load_model
from peftc.capture.program import Program
from peftc.diagnostics import error
from peftc.interop.checkpoint import CONFIG, WEIGHTS
from peftc.interop.to_peft import checkpoint_of


class Peft(Backend):
    """What `PeftModel.from_pretrained(base, folder)` takes: the pieces and not the base.

    Nothing is merged. Its runner loads it with PEFT on a base with the graph's own weights.
    """

    kind: ClassVar[str] = "peft"
    extra: ClassVar[str | None] = "peft"
    requires: ClassVar[tuple[str, ...]] = ("peft",)
    runner: ClassVar[Path] = Path(__file__).parent / "runners" / "run_peft.py"
    merges: ClassVar[bool | None] = False
    real_only: ClassVar[bool] = True

    def check(self, graph: Program, program: Program) -> None:
        """Refuse what PEFT cannot express."""
        checkpoint_of(program, applied_to(graph))

    def write(self, program: Program, folder: Path, options: Mapping[str, Any]) -> str:
        """Write the configuration and the tensors."""
        written = checkpoint_of(program, options["applied"])
        text = json.dumps(written.config, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(written.tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
        return CONFIG

    def arguments(self, graph: Program, folder: Path) -> tuple[str, ...]:
        """The base model, written from the graph's frozen weights; the rows that outputs lose."""
        base = applied_to(graph).base
        signature = base.signature
        model = load_model(signature.config, architecture=signature.model_class, weights=True)
        model = model.to(next(base.parameters()).dtype)
        state = {**dict(base.named_parameters()), **dict(base.named_buffers())}
        model.load_state_dict({k: v.detach().cpu() for k, v in state.items()}, strict=False)
        model.save_pretrained(folder / "base")
        return str(folder / "base"), signature.model_class, str(trimmed(applied_to(graph)))


def applied_to(graph: Program) -> Applied:
    """What `apply` did to a graph.

    Raises:
        PeftcError: E307 where it does not come from `apply`.
    """
    applied = graph.meta.get(APPLIED)
    if applied is None:
        raise error("E307", "only a graph that `apply` or `load` made can be exported to peft")
    return applied


def trimmed(applied: Applied) -> int:
    """The rows that the graph cuts from its outputs and PEFT does not."""
    prompts = [i for i in applied.spec.insert if i.composition.kind == "prepend"]
    return sum(i.delta.options.tokens for i in prompts if i.composition.options.trim)
