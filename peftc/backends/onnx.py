"""ONNX: one small graph file, and the weights beside it under their state_dict names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from peftc.backends.base import Backend
from peftc.backends.lower import axis_symbols, lowered
from peftc.capture.program import Program
from peftc.capture.trace import quiet
from peftc.diagnostics import error

OPSETS = (20, 24)  # 23 has a faulty Attention conversion, at 25 the CPU kernels are inlined
FILE, WEIGHTS = "model.onnx", "model.onnx.data"


class Onnx(Backend):
    """`model.onnx` with dynamic axes, and `model.onnx.data` with every weight.

    The exporter's own optimiser is not used: it renames and transposes weights, and merges equal
    ones, so that zero-initialised tensors of several layers would become one.
    """

    kind: ClassVar[str] = "onnx"
    extra: ClassVar[str | None] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnx_ir", "onnxruntime")
    runner: ClassVar[Path] = Path(__file__).parent / "runners" / "run_onnx.py"

    def write(self, program: Program, folder: Path, options: Mapping[str, Any]) -> str:
        """Write the graph and its weights.

        Raises:
            PeftcError: E402 for an opset that is not supported.
        """
        import onnx
        import onnx_ir as ir

        opset = options.get("opset") or OPSETS[-1]
        if opset not in OPSETS:
            raise error(
                "E407",
                f"opset {opset} is not supported",
                help=(f"opsets: {', '.join(map(str, OPSETS))}",),
            )
        exported = lowered(program)
        signature = program.signature
        with quiet(), torch.no_grad():
            made = torch.onnx.export(
                exported,
                (),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=[i.name for i in signature.inputs],
                output_names=[o.name for o in signature.outputs],
            )
        model = made.model  # type: ignore[union-attr]
        name_axes(model, axis_symbols(exported, program))
        simplify(model)
        strip(model)
        ir.save(model, folder / FILE, external_data=WEIGHTS)
        onnx.checker.check_model(str(folder / FILE))
        return FILE


def name_axes(model: Any, names: Mapping[str, str]) -> None:
    """Axes of inputs, outputs and values under the signature's names, not the tracer's."""
    import onnx_ir as ir

    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    renamed(d.value, names) if isinstance(d, ir.SymbolicDim) else d
                    for d in value.shape
                ]
            )


def renamed(axis: str | None, names: Mapping[str, str]) -> str | None:
    """An axis, or an expression over axes, with symbols by name."""
    for symbol, name in sorted(names.items(), key=lambda item: -len(item[0])):
        axis = axis.replace(symbol, name) if axis else axis
    return axis


def simplify(model: Any) -> None:
    """Inline functions, fold constants that are not weights, share equal computations."""
    import onnx_ir.passes.common as common
    from onnx_ir.passes import PassManager, Sequential
    from onnxscript import rewriter
    from onnxscript.optimizer import _constant_folding as folding

    weights = set(model.graph.initializers)

    def should_fold(node: Any) -> bool | None:
        reads_weight = any(v is not None and v.name in weights for v in node.inputs)
        return False if reads_weight else None

    fold = folding.FoldConstantsPass(
        shape_inference=True,
        input_size_limit=8192,
        output_size_limit=512 * 512,
        should_fold=should_fold,
    )
    rules = rewriter.RewritePass(rewriter._DEFAULT_REWRITE_RULES)
    clean = (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
    )
    Sequential(
        common.InlinePass(),
        PassManager([fold, rules, *clean], steps=2, early_stop=True),
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=16),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def strip(model: Any) -> None:
    """Remove what only the exporter's authors read: it is most of the file."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    model.producer_name = "peftc"
