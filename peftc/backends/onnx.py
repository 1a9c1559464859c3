"""ONNX: a small graph file over the base's own weights file, or over a copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from peftc import runtime
from peftc.backends.base import Backend, Exported
from peftc.backends.lower import axis_symbols, lowered
from peftc.backends.onnx_attention import merge_heads
from peftc.backends.onnx_names import name_axes, name_values
from peftc.backends.onnx_read import Weights, initializers, lines_of, place_of
from peftc.backends.onnx_wide import share_inputs
from peftc.backends.weights import BASE, PEFT, Source, link, standing_in, write
from peftc.capture.piece_name import is_inserted
from peftc.capture.program import Program
from peftc.capture.stored import Stored
from peftc.capture.trace import quiet
from peftc.ground.diagnostics import error
from peftc.passes.base import settled

OPSETS = (20, 24)  # 23 has a faulty Attention conversion, at 25 the CPU kernels are inlined
FILE = "model.onnx"
IN_PLACE = {
    "optimization.disable_specified_optimizers": "ConstantFolding",
    "session.disable_prepacking": "1",
}
SMALL = 1024  # bytes: smaller constants that are no weights stay in the graph file


class Onnx(Backend):
    """`model.onnx` with dynamic axes, and its weights under their state_dict names.

    With `link` frozen weights stay where they are, in the base's own `model.safetensors`, which
    the folder gets as a hard link; what was inserted or changed is in `peft.safetensors`.
    Otherwise both files are written. The exporter's own optimiser is not used: it renames and
    transposes weights, and merges equal ones, so that zero-initialised tensors of several layers
    would become one.
    """

    kind: ClassVar[str] = "onnx"
    extra: ClassVar[str | None] = "onnx"
    links: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnx_ir", "onnxruntime")
    runner: ClassVar[Path] = Path(__file__).parent / "runners" / "run_onnx.py"
    ships: ClassVar[tuple[Path, ...]] = (Path(runtime.__file__),)

    def session_options(self, *, linked: bool) -> dict[str, str]:
        """With linked weights ONNX Runtime is to make no copies of them.

        It would fold a transposed copy of every linear weight, and pack each once more for its
        kernels. Packing can be switched on again: it costs the memory and gains speed.
        """
        return dict(IN_PLACE) if linked else {}

    def tensors(self, exported: Exported) -> Mapping[str, torch.Tensor]:
        """The weights beside the graph file, each read when it is asked for."""
        return Weights(initializers(exported))

    def listings(self, program: Program, exported: Exported) -> tuple[list[str], list[str]]:
        """The nodes and constants of the graph, converted anew, and those of the file."""
        import onnx_ir as ir

        opset = exported.facts["opset"] or OPSETS[-1]
        ours = made_of(program, opset, linked=exported.facts["weights"] == "link")
        theirs = ir.load(exported.folder / exported.file)
        weights = {n for n, _ in (*program.named_parameters(), *program.named_buffers())}
        return lines_of(ours, weights), lines_of(theirs, weights)

    def places(self, exported: Exported) -> Mapping[str, Stored]:
        """Where the graph file says that its weights lie."""
        return {n: p for n, v in initializers(exported).items() if (p := place_of(v)) is not None}

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
        linked = bool(options.get("link"))
        places: Mapping[str, Stored] = options.get("places") or {}
        model = made_of(program, opset, linked=linked)
        settle(model, program, folder, places, linked=linked)
        ir.save(model, folder / FILE)
        files = {places[n].file for n in places if n in model.graph.initializers}
        with standing_in(files if linked else (), folder):
            onnx.checker.check_model(str(folder / FILE))
        if linked:
            link(files, folder)
        return FILE


def made_of(program: Program, opset: int, *, linked: bool) -> Any:
    """The model of a graph, its weights without numbers."""
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
    name_values(model, made.exported_program, exported)  # type: ignore[union-attr]
    name_axes(model, axis_symbols(exported, program))
    for name in dict(program.named_parameters()).keys() & model.graph.initializers.keys():
        model.graph.initializers[name].const_value = None  # no pass may read a weight
    simplify(model)
    strip(model)
    if next(program.parameters()).device.type == "cpu":
        merge_heads(model)
        share_inputs(model, folded=not linked)
        forget_shapes(model)
    return model


def settle(
    model: Any, program: Program, folder: Path, places: Mapping[str, Stored], *, linked: bool
) -> None:
    """Write what the graph's initializers are made of, and point them there."""
    files: dict[str, dict[str, Source]] = {}
    named = dict(program.named_parameters()) | dict(program.named_buffers())
    for name, value in model.graph.initializers.items():
        if name in places:
            place = places[name]
            if linked:
                point(value, place, place.file.name)
                continue
            source = Source(named[name].dtype, place.shape, place)
        elif name in named:
            tensor = named[name]
            give = partial(settled, program, name)
            source = Source(tensor.dtype, tuple(tensor.shape), give)
        elif value.const_value.nbytes < SMALL:
            continue
        else:
            array = torch.from_numpy(value.const_value.numpy())
            source = Source(array.dtype, tuple(array.shape), lambda array=array: array)
        own = linked or is_inserted(name)
        files.setdefault(PEFT if own else BASE, {})[name] = source
    for file, sources in files.items():
        for name, place in write(folder / file, sources).items():
            point(model.graph.initializers[name], place, file)


def point(value: Any, place: Stored, location: str) -> None:
    """Let an initializer be the bytes at `place`."""
    import onnx_ir as ir

    value.const_value = ir.ExternalTensor(
        location,
        place.offset,
        place.length,
        value.dtype,
        shape=ir.Shape(place.shape),
        name=value.name,
        base_dir=place.file.parent,
    )


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


def forget_shapes(model: Any) -> None:
    """Leave the shapes of inner values to the runtime, which infers what it needs.

    Where they are written down, ONNX Runtime joins each residual addition with the norm behind it
    in a kernel that is several times slower on a CPU than the two: an encoder takes 12 % longer.
    Of what an attention reads as its values the width stays, which that of its output follows
    from; with the other sizes a model with a prefix takes 2 % longer.
    """
    import onnx_ir as ir

    for node in model.graph:
        for value in node.outputs:
            if value.is_graph_output():
                continue
            shape, value.shape = value.shape, None
            summed = any(n.op_type == "Attention" and k == 2 for n, k in value.uses())
            if summed and shape is not None and len(shape) == 3:
                value.shape = ir.Shape([None, None, shape[2]])


def strip(model: Any) -> None:
    """Remove what only the exporter's authors read: it is most of the file."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    model.producer_name = "peftc"
