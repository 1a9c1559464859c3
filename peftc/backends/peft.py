"""HF PEFT: `adapter_config.json` and `adapter_model.safetensors`, loaded on the same base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftc.backends.base import Backend, Exported
from peftc.backends.wanted import Wanted
from peftc.capture.load import load_model
from peftc.capture.program import Program
from peftc.ground.diagnostics import Diagnostic, error
from peftc.interop.checkpoint import CONFIG, WEIGHTS
from peftc.interop.to_peft import checkpoint_of
from peftc.methods.prefix.module import Prefix
from peftc.methods.prompt.module import Prompt
from peftc.passes.base import pieces
from peftc.rewrite.applied import APPLIED, Applied

CACHELESS = "model.generate(..., use_cache=False)"


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

    def wanted(self, program: Program, graph: Program) -> Mapping[str, Wanted]:
        """The tensors of the checkpoint; prefixes of a small network are computed anew."""
        tensors = checkpoint_of(program, applied_to(graph)).tensors
        return {n: Wanted(lambda t=t: t, exact=False) for n, t in tensors.items()}

    def tensors(self, exported: Exported) -> Mapping[str, Tensor]:
        """The tensors of the checkpoint."""
        return load_file(exported.folder / WEIGHTS[0])

    def notes(self, program: Program) -> tuple[Diagnostic, ...]:
        """W401 for a prefix or a prompt of a model that generates."""
        inserted = {type(m) for _, m in pieces(program, nn.Module)} & {Prefix, Prompt}
        two = program.signature.input("decoder_input_ids") is not None
        if two:
            inserted -= {Prompt}  # before the encoder, which runs once
        if not inserted or not can_generate(program.signature.model_class):
            return ()
        if two:
            how, way = "from a decoder's prefix, with a cache or without", "call it token by token"
        elif Prefix in inserted:
            how, way = "with a cache as if there were no prefix, or with other positions", CACHELESS
        else:
            how, way = (
                "with a cache wrongly after the prompt's first token, or not at all",
                CACHELESS,
            )
        return (
            Diagnostic(
                "W401",
                f"PEFT 0.21 on transformers 5 does not generate what the graph does: {how}",
                notes=("single calls give what the graph gives",),
                help=(way, "onnx, torchscript and aoti hold the whole graph"),
            ),
        )

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


def can_generate(name: str) -> bool:
    """Whether models of a transformers class generate text."""
    import transformers

    factory = getattr(transformers, name, None)
    return factory is not None and factory.can_generate()


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
