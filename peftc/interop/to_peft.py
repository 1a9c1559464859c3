"""A graph -> the configuration and the tensors of a PEFT checkpoint."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from peftc.capture.piece_name import is_inserted
from peftc.capture.program import Program, attribute
from peftc.interop.common import LOSSES, cannot
from peftc.interop.written import Written
from peftc.rewrite.applied import Applied


def checkpoint_of(program: Program, applied: Applied) -> Written:
    """The checkpoint of a graph whose reparameterisations are folded.

    What the graph was imported from gives the names and options, where they still say the same.

    Raises:
        PeftcError: E408 where PEFT has no form of the graph.
    """
    pieces = inserted(program)
    written = writer_for(pieces).write(program, applied, pieces)
    origin = applied.origin
    if origin is not None:
        for key, name in origin.same.items():
            written.tensors[key] = attribute(applied.base, name).detach()
        for key, value in origin.unused.items():
            if not key.startswith("prompt_embeddings"):
                written.tensors[key] = value
        if same_tensors(written.tensors, origin.dtypes) and written.agrees(origin.config):
            written.config = dict(origin.config)
        for key, dtype in origin.dtypes.items():
            if key in written.tensors:
                written.tensors[key] = narrowed(written.tensors[key], getattr(torch, dtype))
    if origin is None or written.config is not origin.config:
        written.config.setdefault("base_model_name_or_path", applied.reference)
    written.tensors = {k: v.detach().cpu().contiguous().clone() for k, v in written.tensors.items()}
    return written


def inserted(program: Program) -> list[tuple[fx.Node, Any]]:
    """The inserted pieces with their nodes, in the graph's order."""
    nodes = [n for n in program.graph.nodes if n.op == "call_module"]
    return [(n, attribute(program, str(n.target))) for n in nodes if is_inserted(n.target)]


def writer_for(pieces: list[tuple[fx.Node, Any]]) -> Any:
    """The one writer that can express every piece, found by walking this package.

    Raises:
        PeftcError: E408, with what PEFT cannot express.
    """
    import peftc.interop as package

    kinds = {type(m) for _, m in pieces}
    names = [i.name for i in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"{package.__name__}.{n}") for n in names]
    writers = [m for m in modules if hasattr(m, "WRITES")]
    known = {k for m in writers for k in m.WRITES}
    for module in writers:
        if kinds and kinds <= set(module.WRITES):
            return module
    bad = sorted({k.__name__ for k in kinds - known})
    if bad:
        raise cannot(f"it has no form of: {', '.join(bad)}")
    if kinds:
        names = sorted(k.__name__ for k in kinds)
        raise cannot(f"a checkpoint is of one method, and this graph has {', '.join(names)}")
    raise cannot("nothing is inserted")


def task_type(program: Program, applied: Applied) -> str | None:
    """PEFT's name of the model's task."""
    signature = program.signature
    if applied.origin is not None and "task_type" in applied.origin.config:
        return applied.origin.config["task_type"]
    if signature.loss in LOSSES:
        return LOSSES[signature.loss]
    if signature.input("decoder_input_ids") is not None:
        return "SEQ_2_SEQ_LM"
    return "FEATURE_EXTRACTION"


def same_tensors(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> bool:
    """Whether a checkpoint has exactly the tensors that another one had."""
    return tensors.keys() == names.keys()


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the dtype that it came in, where that loses nothing."""
    narrow = tensor.to(dtype)
    return narrow if narrow.to(tensor.dtype).equal(tensor) else tensor
