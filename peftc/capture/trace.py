"""model -> torch.export.ExportedProgram, functional, with free batch and length axes."""

from __future__ import annotations

import contextlib
import copy
import io
import linecache
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from peftc.capture.einsum import DECOMPOSITIONS
from peftc.capture.functional import is_functional
from peftc.capture.inputs import Example, text_config
from peftc.ground.diagnostics import error

PADDING = "pad"  # what every such complaint of transformers says: padding token, pad_token_id


@torch.library.custom_op("peftc::dropout", mutates_args=())
def dropout_mark(x: Tensor, p: float) -> Tensor:
    """The place of an eval-mode dropout, kept through decomposition: the identity on x."""
    return x.clone()


@dropout_mark.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)


def trace(model: Any, example: Example) -> ExportedProgram:
    """Export `model` in eval mode, without cache, and functionalise the graph.

    Raises:
        PeftcError: E201 where torch.export cannot capture the model.
    """
    device = next(model.parameters()).device
    values = {n: v.to(device) for n, v in example.values.items()}
    shapes = {
        i.name: {k: Dim.DYNAMIC for k, d in enumerate(i.dims) if isinstance(d, str)}
        for i in example.inputs
    }
    with tracing_state(model), quiet(), torch.no_grad():
        try:
            # The tracer prints its whole graph where it stops.
            with (
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                exported = torch.export.export(
                    model, (), values, dynamic_shapes=shapes, strict=False
                )
        except Exception as cause:  # whatever the model's own code raises under tracing
            raise not_capturable(model, cause, example) from cause
        mark_dropouts(exported.graph_module)
        if is_functional(exported, DECOMPOSITIONS):
            return exported
        return exported.run_decompositions(DECOMPOSITIONS)


def mark_dropouts(module: fx.GraphModule) -> None:
    """%d = aten.dropout(%x, p, False)  ->  %d = peftc.dropout(%x, p), which decomposition keeps."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.dropout.default:
            x, p, _ = node.args
            node.target = torch.ops.peftc.dropout.default
            node.args = (x, float(p))
    module.recompile()


@contextlib.contextmanager
def tracing_state(model: Any) -> Iterator[None]:
    """Eval mode, no cache, and attention and experts in a traceable form; all restored after."""
    configs = all_configs(model)
    saved = [
        (c, k, c.__dict__[k])
        for c in configs
        for k in ("use_cache", "_attn_implementation_internal", "_experts_implementation_internal")
        if k in c.__dict__
    ]
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()
        for c in configs:
            c.use_cache = False
        choose_implementations(model)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for c in configs:
            if not any(c is d and k == "use_cache" for d, k, _ in saved):
                c.__dict__.pop("use_cache", None)
        for c, k, v in saved:
            c.__dict__[k] = v


def choose_implementations(model: Any) -> None:
    """Keep eager or SDPA attention as the model has it (the graph is to be exactly equal).

    Any other kernel becomes SDPA where the model has that, else eager; experts become batched
    matmuls, since their other forms are loops over data.
    """
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        for implementation in ("sdpa", "eager"):
            try:
                model.set_attn_implementation(implementation)
                break
            except (ValueError, ImportError, AttributeError):
                continue
    with contextlib.suppress(ValueError, AttributeError):
        model.set_experts_implementation("batched_mm")


def all_configs(model: Any) -> list[Any]:
    """Every config the model reads: its modules' own (some are copies) and those inside them."""
    found: dict[int, Any] = {}
    waiting = [m.config for m in model.modules() if hasattr(m, "config")]
    while waiting:
        config = waiting.pop()
        if hasattr(config, "to_diff_dict") and id(config) not in found:
            found[id(config)] = config
            waiting += vars(config).values()
    return list(found.values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings or log lines of the tracer on the user's terminal."""
    names = ("torch.export", "torch.fx", "torch._export", "torch._dynamo", "torch.onnx")
    loggers = [logging.getLogger(n) for n in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def frozen_config(model: Any) -> Any:
    """The model's config as the graph keeps it: a copy, so that neither changes the other."""
    return copy.deepcopy(model.config)


def no_padding(model: Any, said: str) -> Exception:
    """E212: the model's code reads the id of padding, and the config has none."""
    end = getattr(text_config(model.config), "eos_token_id", None)
    example = end if isinstance(end, int) else "ID"
    return error(
        "E212",
        f"the config of {type(model).__name__} has no pad_token_id",
        notes=(said[:200],),
        help=(
            "set the id that the tokenizer pads with: model.config.pad_token_id = "
            f"tokenizer.pad_token_id; without one, often that of the end mark: {example}",
            f'for a folder, in its config.json: "pad_token_id": {example}',
        ),
    )


def not_capturable(model: Any, cause: BaseException, example: Example) -> Exception:
    """E201 with the line of the model's own code where tracing stopped."""
    place = code = ""
    trail = cause.__traceback__
    while trail is not None:
        name = trail.tb_frame.f_code.co_filename
        if "modeling_" in name or "/models/" in name:
            place = f"{name.rsplit('/', 1)[-1]}:{trail.tb_lineno}"
            code = linecache.getline(name, trail.tb_lineno).strip()
        trail = trail.tb_next
    help = ["--attn eager (or sdpa) can avoid a branch that depends on data"]
    first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    if getattr(text_config(model.config), "pad_token_id", None) is None and PADDING in first:
        return no_padding(model, first)
    why = f"{type(cause).__name__}: {first}"[:300]
    if "specialized it to be a constant" in str(cause):
        why = "its code needs the length as a number: it loops over tokens or chunks"
        help = ["--static-length N captures it for inputs of exactly N tokens"]
        if all(isinstance(i.dims[1], int) for i in example.inputs):
            help = []
    return error(
        "E201",
        f"torch.export cannot capture {type(model).__name__}",
        notes=tuple(
            t
            for t in (
                f"stopped at {place}  `{code}`" if place else "",
                why,
            )
            if t
        ),
        help=tuple(help),
    )
