"""Runs a deployment folder with numpy and ONNX Runtime alone; a copy of it lies in the folder.

    session = Session("out/onnx")
    logits = session(input_ids=ids, attention_mask=mask)["logits"]

Nothing of torch, transformers or peftc is imported, so a server needs this file and two packages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FACTS = "peftc.export.json"
FORMAT = "1.0"
CHECKS = ("fast", "full", "none")
HEAD, BLOCK, BLOCKS = 1 << 16, 1 << 12, 32  # what a fingerprint reads of a file, in bytes
CUDA = "CUDAExecutionProvider"
PROVIDERS = (CUDA, "CPUExecutionProvider")
# ONNX Runtime rounds products on a GPU to 10 bits unless it is told to keep float32.
SETTINGS = {CUDA: {"use_tf32": "0"}}
TYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16",
    "int64": "int64", "int32": "int32", "bool": "bool",
}  # fmt: skip


class DeploymentError(Exception):
    """A refusal, with its code and the next steps; `peftc explain CODE` says more."""

    def __init__(self, code: str, message: str, *help: str) -> None:
        self.code = code
        super().__init__(
            "\n".join([f"error[{code}]: {message}", *(f"  = help: {h}" for h in help)])
        )


class Session:
    """An exported model, loaded with the session options that it was exported for.

    `check` says how files are compared with what the export wrote down: "fast" by size and by
    samples of their bytes (milliseconds, whatever the size), "full" by SHA-256, "none" not at
    all. `options` are entries of ONNX Runtime's session configuration, over the folder's own.
    `providers` are ONNX Runtime's, by name or with settings, CUDA and then the CPU by default;
    CUDA by name keeps float32 products whole (`use_tf32` is 0).

    Raises:
        DeploymentError: E308 where the folder is no export, E303 for a missing, truncated or
            changed file, E406 where ONNX Runtime cannot load it, E409 for a wrong argument.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        check: str = "fast",
        providers: Sequence[str | tuple[str, dict[str, str]]] | None = None,
        options: Mapping[str, str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.facts = read(self.folder)
        if check not in CHECKS:
            raise DeploymentError("E409", f"check: {check}", f"one of: {', '.join(CHECKS)}")
        if check != "none":
            check_files(self.folder, self.facts, full=check == "full")
        self.inputs: list[dict[str, Any]] = self.facts["inputs"]
        self.outputs: list[str] = [o["name"] for o in self.facts["outputs"]]
        config = {**self.facts.get("session", {}), **(options or {})}
        self.session = load(self.folder / self.facts["file"], config, providers or (), threads)
        self.check_signature()

    def __call__(self, **given: Any) -> dict[str, np.ndarray]:
        """Run on arrays by name; absent masks are ones, absent token types zeros.

        Raises:
            DeploymentError: E204 for inputs that the model does not take.
        """
        feed = self.bound(given)
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))

    def bound(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Every input of the model, checked, with defaults for absent ones."""
        names = [i["name"] for i in self.inputs]
        given = {n: v for n, v in given.items() if v is not None}
        unknown = [n for n in given if n not in names]
        missing = [i["name"] for i in self.inputs if i["name"] not in given and not i["default"]]
        if unknown or missing:
            what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
            raise DeploymentError("E204", f"inputs are {what}", f"it takes: {', '.join(names)}")
        sizes: dict[str, tuple[int, str]] = {}  # axis -> its size, and the input that has it
        feed = {}
        for i in self.inputs:
            if i["name"] in given:
                feed[i["name"]] = array(i, given[i["name"]], sizes)
        for axis, most in self.facts.get("longest", {}).items():
            if axis in sizes and sizes[axis][0] > most:
                what = f"{axis} is {sizes[axis][0]}, and the model has positions for {most}"
                raise DeploymentError("E122", what, f"cut it: truncation=True, max_length={most}")
        for i in self.inputs:
            if i["name"] not in feed:
                shape = [sizes[d][0] if isinstance(d, str) else d for d in i["dims"]]
                feed[i["name"]] = np.full(shape, int(i["default"] == "ones"), dtype=i["dtype"])
        return feed

    def check_signature(self) -> None:
        """Refuse a graph file that takes or gives something else than was written down."""
        takes = {i.name: TYPES.get(i.type[7:-1], i.type) for i in self.session.get_inputs()}
        wanted = {i["name"]: i["dtype"] for i in self.inputs}
        gives = [o.name for o in self.session.get_outputs()]
        if takes != wanted or gives != self.outputs:
            raise DeploymentError(
                "E303",
                f"{self.folder / self.facts['file']} takes {takes} and gives {gives}, "
                f"{FACTS} says {wanted} and {self.outputs}",
                "copy the whole folder again",
            )


def read(folder: Path) -> dict[str, Any]:
    """What the export wrote down about itself."""
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise DeploymentError("E308", f"{folder} is no export: it has no {FACTS}") from cause
    except (ValueError, OSError) as cause:
        raise DeploymentError("E303", f"{path} cannot be read: {cause}") from cause
    if not isinstance(facts, dict) or facts.get("format_version") != FORMAT:
        raise DeploymentError("E308", f"{path} is not of format {FORMAT}")
    if facts["kind"] != "onnx":
        raise DeploymentError(
            "E308", f"{folder} holds {facts['kind']}, and this runs ONNX", "export it --to onnx"
        )
    return facts


def check_files(folder: Path, facts: Mapping[str, Any], *, full: bool = False) -> None:
    """Compare every file with what the export wrote down."""
    for name, wanted in facts["files"].items():
        path = folder / name
        if not path.is_file():
            raise DeploymentError("E303", f"{path} is missing", "copy the whole folder again")
        if (size := path.stat().st_size) != wanted["bytes"]:
            raise DeploymentError(
                "E303",
                f"{path} is damaged: it has {size:,} bytes, {FACTS} says {wanted['bytes']:,}",
                "copy it again: a copy that stopped early looks like this",
            )
        made = sha256(path) if full else fingerprint(path)
        if made != wanted["sha256" if full else "fingerprint"]:
            raise DeploymentError(
                "E303",
                f"{path} is not the file that was exported: it has the same size, other bytes",
                "a base that was trained further needs an export of its own",
                "copy the whole folder again, or export again",
            )


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's size, its first 64 KiB and 32 blocks of 4 KiB spread over the rest."""
    size = path.stat().st_size
    result = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        result.update(file.read(HEAD))
        for k in range(1, BLOCKS + 1):
            start = size * k // BLOCKS - BLOCK
            if start >= HEAD:
                file.seek(start)
                result.update(file.read(BLOCK))
    return result.hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, read in small parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(
    path: Path,
    config: Mapping[str, str],
    providers: Sequence[str | tuple[str, dict[str, str]]],
    threads: int | None,
) -> Any:
    """The file as an ONNX Runtime session."""
    import onnxruntime

    able = onnxruntime.get_available_providers()
    asked = [p if isinstance(p, str) else p[0] for p in providers]
    unable = [p for p in asked if p not in able]
    if unable:
        raise DeploymentError("E409", f"no provider {unable[0]}", f"here are: {', '.join(able)}")
    wanted = providers or [p for p in PROVIDERS if p in able]
    chosen = [(p, SETTINGS.get(p, {})) if isinstance(p, str) else p for p in wanted]
    if CUDA in able:
        onnxruntime.preload_dlls()  # CUDA's libraries may lie in Python packages
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    for key, value in config.items():
        settings.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=chosen)
    except Exception as cause:  # ONNX Runtime has one class for each of its states
        first = next((t.strip() for t in str(cause).splitlines() if t.strip()), "")
        raise DeploymentError(
            "E406",
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {first[:300]}",
            "a newer onnxruntime, or an export with --opset 20",
        ) from cause
    if absent := [p for p in asked if p not in session.get_providers()]:
        raise DeploymentError(
            "E409",
            f"{absent[0]} does not start here",
            "its libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    return session


def array(i: Mapping[str, Any], value: Any, sizes: dict[str, tuple[int, str]]) -> np.ndarray:
    """One input as the model takes it; its free axes noted in `sizes`."""
    name, dims = i["name"], i["dims"]
    found = np.asarray(value)
    if found.dtype != i["dtype"]:
        if not np.can_cast(found.dtype, np.dtype(i["dtype"]), "safe"):
            raise DeploymentError("E204", f"{name} is {found.dtype}, the model takes {i['dtype']}")
        found = found.astype(i["dtype"])
    shape = ", ".join(map(str, dims))
    fixed = any(not isinstance(d, str) and d != n for d, n in zip(dims, found.shape, strict=False))
    if found.ndim != len(dims) or fixed:
        raise DeploymentError(
            "E204", f"{name} is of shape {list(found.shape)}, the model takes [{shape}]"
        )
    for axis, size in zip(dims, found.shape, strict=True):
        if isinstance(axis, str) and sizes.setdefault(axis, (size, name))[0] != size:
            other = sizes[axis]
            raise DeploymentError(
                "E204", f"{axis} is {size} in {name} and {other[0]} in {other[1]}"
            )
    return found
