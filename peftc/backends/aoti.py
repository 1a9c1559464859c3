"""AOTInductor: the graph compiled to machine code, which torch alone runs, in Python or C++."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from peftc.backends.base import Backend, Exported
from peftc.backends.inside import Inside
from peftc.backends.lower import lowered
from peftc.backends.weights import PEFT, Source, link, write
from peftc.capture.piece_name import is_inserted
from peftc.capture.program import Program
from peftc.capture.stored import Stored
from peftc.capture.trace import quiet
from peftc.ground.diagnostics import error

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
    runner: ClassVar[Path] = Path(__file__).parent / "runners" / "run_aoti.py"
    ships: ClassVar[tuple[Path, ...]] = (runner,)

    def check_tools(self) -> None:
        """Refuse to export without a compiler for the generated C++; running needs none.

        Raises:
            PeftcError: E413.
        """
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise error(
                "E413",
                f"exporting to aoti needs a C++ compiler, and there is no `{compiler}`",
                help=("install g++, or name another compiler in CXX", "onnx needs none"),
            )

    def write(self, program: Program, folder: Path, options: Mapping[str, Any]) -> str:
        """Compile the graph, and write the weights that are not in it.

        Raises:
            PeftcError: E414 where it cannot be compiled.
        """
        linked = bool(options.get("link"))
        places: Mapping[str, Stored] = options.get("places") or {}
        named = compiled(program, folder / FILE, inside=not linked)
        beside = write_beside(named, folder, places if linked else None)
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

    def tensors(self, exported: Exported) -> Mapping[str, Tensor]:
        """The inserted weights; those in the package have no names outside it."""
        path = exported.folder / PEFT
        return load_file(path) if path.is_file() else {}

    def lookup(self, exported: Exported) -> Callable[[str, Tensor], Tensor | None]:
        """Finds a tensor where `constants.json` says, or its bytes in the package.

        Torch gives out no constant of a package, and their names are not beside their bytes.
        """
        listed = json.loads((exported.folder / CONSTANTS).read_text(encoding="utf-8"))
        linked = exported.facts["weights"] == "link"
        inside = None if linked else Inside(exported.folder / exported.file)

        def find(name: str, wanted: Tensor) -> Tensor | None:
            if name in listed:
                one = listed[name]
                dtype, shape = getattr(torch, one["dtype"]), tuple(one["shape"])
                path = exported.folder / one["file"]
                beside = Stored(path, dtype, shape, one["offset"], one["bytes"]).read()
                if inside is None or not beside.equal(wanted):
                    return beside
            return wanted if inside is not None and inside.has(wanted) else None

        return find


def compiled(program: Program, path: Path, *, inside: bool) -> dict[str, Tensor]:
    """Compile the flat graph; its tensors by name, which are in the package where `inside`.

    Every weight stays a constant that can be replaced: left to itself the compiler writes the
    numbers of tensors with up to eight elements into the code.
    """
    exported = lowered(program)
    constants = {n: t for n, t in exported.constants.items() if isinstance(t, Tensor)}
    named = {**exported.state_dict, **constants}  # before the compiler takes it apart
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
            "E414",
            f"AOTInductor cannot compile this graph: {type(cause).__name__}",
            notes=tuple(t[:200] for t in lines[:2]),
            help=("export to onnx or torchscript instead",),
        ) from cause
    return named


def write_beside(
    named: Mapping[str, Tensor], folder: Path, places: Mapping[str, Stored] | None
) -> dict[str, Stored]:
    """Where each tensor beside the package is: all of them, or without `places` the inserted."""
    beside = {n: p for n, p in (places or {}).items() if n in named}
    sources = {
        n: Source(t.dtype, tuple(t.shape), lambda t=t: t)
        for n, t in named.items()
        if n not in beside and (places is not None or is_inserted(n))
    }
    return beside | write(folder / PEFT, sources)
