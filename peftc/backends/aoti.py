"""AOTInductor: the graph compiled to machine code, which torch alone runs, in Python or C++."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from peftc.backends.base import Backend
from peftc.backends.lower import lowered
from peftc.backends.weights import PEFT, Source, fill, link, write
from peftc.capture.program import PEFT_PREFIX, Program
from peftc.capture.stored import Stored
from peftc.capture.trace import quiet
from peftc.diagnostics import error
from peftc.passes.base import settled

FILE, CONSTANTS = "model.pt2", "constants.json"


class Aoti(Backend):
    """`model.pt2`, compiled for the device that the graph is on; batch and length stay free.

    Its constants keep their state_dict names. Inserted tensors are also in `peft.safetensors`,
    where `constants.json` says what is where, so that a loaded model can be given those of
    another export. With `link` the package holds code alone, and frozen weights stay in the
    base's own files, which the folder gets as hard links.
    """

    kind: ClassVar[str] = "aoti"
    links: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    runner: ClassVar[Path] = Path(__file__).parent / "runners" / "run_aoti.py"
    ships: ClassVar[tuple[Path, ...]] = (runner,)

    def check_tools(self) -> None:
        """Refuse to start without a compiler for the generated C++.

        Raises:
            PeftcError: E412.
        """
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise error(
                "E412",
                f"exporting to aoti needs a C++ compiler, and there is no `{compiler}`",
                help=("install g++, or name another compiler in CXX", "onnx needs none"),
            )

    def write(self, program: Program, folder: Path, options: Mapping[str, Any]) -> str:
        """Compile the graph, and write the weights that are not in it.

        Raises:
            PeftcError: E411 where it cannot be compiled.
        """
        linked = bool(options.get("link"))
        places: Mapping[str, Stored] = options.get("places") or {}
        fill(program)
        compiled(program, folder / FILE, inside=not linked)
        beside = write_beside(program, folder, places if linked else None)
        if linked:
            link({p.file for p in beside.values() if p.file.parent != folder}, folder)
        listed = {
            n: {
                "file": p.file.name,
                "dtype": str(p.dtype).removeprefix("torch."),
                "shape": list(p.shape),
                "offset": p.offset,
                "bytes": p.length,
            }
            for n, p in beside.items()
        }
        (folder / CONSTANTS).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        return FILE


def compiled(program: Program, path: Path, *, inside: bool) -> None:
    """Compile the flat graph; its weights go into the package where `inside`.

    Every weight stays a constant that can be replaced: left to itself the compiler writes the
    numbers of tensors with up to eight elements into the code.
    """
    exported = lowered(program)
    options = {
        "always_keep_tensor_constants": True,
        "aot_inductor.package_constants_in_so": inside,
    }
    try:
        with quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs=options
            )
    except Exception as cause:  # of the compiler's own, and of the C++ compiler that it calls
        lines = [t.strip() for t in str(cause).splitlines() if t.strip()]
        raise error(
            "E411",
            f"AOTInductor cannot compile this graph: {type(cause).__name__}",
            notes=tuple(t[:200] for t in lines[:2]),
            help=("export to onnx or torchscript instead",),
        ) from cause


def write_beside(
    program: Program, folder: Path, places: Mapping[str, Stored] | None
) -> dict[str, Stored]:
    """Where each tensor beside the package is: all of them, or without `places` the inserted."""
    named = dict(program.named_parameters()) | dict(program.named_buffers())
    beside = {n: p for n, p in (places or {}).items() if n in named}
    sources = {
        n: Source(t.dtype, tuple(t.shape), partial(settled, program, n))
        for n, t in named.items()
        if n not in beside and (places is not None or n.startswith(PEFT_PREFIX))
    }
    return beside | write(folder / PEFT, sources)
