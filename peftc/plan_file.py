"""Plans as files: what `peftc plan -o` writes and `peftc apply plan.json` carries out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftc.diagnostics import error
from peftc.files import FORMAT, write_text
from peftc.spec import Spec, load_spec

if TYPE_CHECKING:  # the planner imports torch, and `check plan.json` is to do without
    from peftc.planner import Plan

KIND = "peftc plan"
COMPARED = ("model", "insertions", "unfrozen", "parameters")


def save_plan(plan: Plan, path: Path, model: Mapping[str, Any], *, force: bool = False) -> None:
    """Write a plan: the resolved spec, the model it is for, and every site.

    `model` holds the options that the model was opened with.

    Raises:
        PeftcError: E306 where the file exists, E503 where it cannot be written.
    """
    config = plan.sites.program.signature.config
    data = {
        "kind": KIND,
        "format_version": FORMAT,
        "options": dict(model),
        "config_sha256": config_hash(config),
        "commit": getattr(config, "_commit_hash", None),
        "resolved_spec": plan.spec.to_dict(),
        "plan": plan.to_json(),
    }
    write_text(path, json.dumps(data, indent=1) + "\n", force=force)


def is_plan(path: str) -> bool:
    """Whether a command-line argument names a plan file rather than a spec."""
    if not path.endswith(".json") or not Path(path).is_file():
        return False
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # `read_plan` says what is wrong with it
    return isinstance(data, dict) and "peftc" not in data


def read_plan(path: str) -> tuple[Spec, dict[str, Any]]:
    """The spec and the contents of a plan file.

    Raises:
        PeftcError: E304 where it is none, or one of another version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["kind"] != KIND or data["format_version"] != FORMAT:
            raise ValueError
        return load_spec(data["resolved_spec"]), data
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise error(
            "E304",
            f"{path} is no plan that this version reads",
            help=("make it again: peftc plan SPEC MODEL -o plan.json",),
        ) from cause


def check_plan(data: Mapping[str, Any], found: Mapping[str, Any], config: Any, path: str) -> None:
    """Refuse a plan that was made for another model than the one planned now.

    Raises:
        PeftcError: E301, with what differs.
    """
    notes = []
    now = getattr(config, "_commit_hash", None)
    if data["commit"] != now:
        notes.append(f"made for {data['commit']}, the model is now {now}")
    if data["config_sha256"] != config_hash(config):
        notes.append("the configuration differs")
    then = data["plan"]
    notes += [f"{k} differ" for k in COMPARED if then[k] != found[k]]
    if notes:
        raise error(
            "E301",
            f"{path} is stale: it was made for another model",
            notes=tuple(notes),
            help=("plan again: peftc plan SPEC MODEL -o plan.json",),
        )


def config_hash(config: Any) -> str:
    """SHA-256 of what a configuration says about shapes; not of where or by what it was saved."""
    said = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        said.pop(name, None)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
