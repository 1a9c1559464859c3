"""The head that a checkpoint was made with, for loading its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftc.interop.checkpoint import Checkpoint
from peftc.interop.common import TASKS


def head_options(checkpoint: Checkpoint, model: str, given: dict[str, Any]) -> dict[str, Any]:
    """`task` and `labels` for the base, as the checkpoint says where they are not given.

    A base folder that is saved with the task's head keeps its own labels. The number of labels is
    that of the rows of the last layer of the head in the file.
    """
    task = given["task"] or TASKS.get(str(checkpoint.config.get("task_type")))
    labels = given["labels"]
    if labels is None and task is not None and task.endswith("-classification"):
        rows = head_rows(checkpoint)
        if rows is not None and rows != own_labels(model):
            labels = str(rows)
    return {"task": task, "labels": labels}


def head_rows(checkpoint: Checkpoint) -> int | None:
    """The rows of the head's last weight: the smallest matrix saved beside the method's own."""
    from safetensors import SafetensorError, safe_open

    sizes = []
    try:
        with safe_open(checkpoint.weights, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                saved_as_is = key.startswith("base_model.") and ".base_layer." not in key
                if saved_as_is and not any(t in key for t in (".lora_", ".ia3_")):
                    shape = file.get_slice(key).get_shape()
                    sizes += [shape[0]] if len(shape) == 2 else []
    except (SafetensorError, OSError):
        return None  # a damaged file is refused when its tensors are read
    return min(sizes, default=None)


def own_labels(model: str) -> int | None:
    """The number of labels that a model folder's config has."""
    path = Path(model) / "config.json"
    if not path.is_file():
        return None
    try:
        labels = json.loads(path.read_text(encoding="utf-8")).get("id2label")
    except ValueError:
        return None  # refused when the model is loaded
    return len(labels) if labels else None
