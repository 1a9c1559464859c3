"""An artifact changed by somebody who makes its lock agree with the change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftc.artifact.lock import LOCK
from peftc.ground.records import sealed


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda lock: None) -> None:
    """Change the lock, hash every file anew, and seal it."""
    lock = json.loads((folder / LOCK).read_text())
    for name in lock["sha256"]:
        lock["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(lock)
    if "seal" in lock:
        lock = sealed(lock)
    (folder / LOCK).write_text(json.dumps(lock, indent=1))


def older(lock: dict[str, Any]) -> None:
    """A lock as it was of format 1.0: without hashes of the spec, of buffers and of itself."""
    lock["format_version"] = "1.0"
    del lock["seal"], lock["model"]["buffers"], lock["model"]["tokenizer"]
    lock["sha256"] = {n: h for n, h in lock["sha256"].items() if n == "peft.safetensors"}
    for tensor in lock["tensors"].values():
        del tensor["finite"]
