"""Plans as files: what `peftc plan -o` writes and `peftc apply` carries out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from peftc.ground.diagnostics import error
from peftc.ground.files import FORMAT
from peftc.ground.output.text import write_text
from peftc.ground.records import Record, Sha256, seal, sealed, wrong_values
from peftc.spec import Spec, load_spec

if TYPE_CHECKING:  # plans import torch, and `check plan.json` is to do without
    from peftc.planning.plan import Plan

PROVENANCE = ("_name_or_path", "transformers_version", "dtype", "architectures")
COMPARED = ("model", "insertions", "unfrozen", "parameters")


class Saved(Record):
    """The contents of a plan file: how the model is opened, what it was, and the plan."""

    kind: Literal["peftc plan"]
    format_version: Literal["1.0"]
    options: dict[str, str | int | None]
    config_sha256: str
    commit: str | None
    resolved_spec: dict[str, Any]
    plan: dict[str, Any]
    seal: Sha256 | None = None


def save_plan(plan: Plan, path: Path, model: Mapping[str, Any], *, force: bool = False) -> None:
    """Write a plan: the resolved spec, the model it is for, and every site.

    `model` holds the options that the model was opened with.

    Raises:
        PeftcError: E306 where the file exists, E503 where it cannot be written.
    """
    config = plan.sites.program.signature.config
    saved = Saved(
        kind="peftc plan",
        format_version=FORMAT,
        options=dict(model),
        config_sha256=config_hash(config),
        commit=getattr(config, "_commit_hash", None),
        resolved_spec=plan.spec.to_dict(),
        plan=plan.to_json(),
    )
    text = json.dumps(sealed(saved.model_dump(exclude={"seal"})), indent=1)
    write_text(path, text + "\n", force=force)


def is_plan(path: str) -> bool:
    """Whether a command-line argument names a plan rather than a spec, which JSON may be too."""
    if not path.endswith(".json") or not Path(path).is_file():
        return False
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # `read_plan` says what is wrong with it
    return not (isinstance(data, dict) and "peftc" in data)


def read_plan(path: str) -> tuple[Spec, dict[str, Any]]:
    """The spec and the contents of a plan file.

    Raises:
        PeftcError: E304 where it is none, or one of another version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        saved = Saved.model_validate(data)
        if saved.seal != seal(data):
            raise ValueError("it was changed after it was written")
        return load_spec(saved.resolved_spec), saved.model_dump()
    except (OSError, ValueError, RecursionError) as cause:
        raise error(
            "E304",
            f"{path} is no plan that this version reads",
            notes=why(cause),
            help=("make it again: peftc plan SPEC MODEL -o plan.json",),
        ) from cause


def why(cause: Exception) -> tuple[str, ...]:
    """What is wrong with a plan file: the first field that does not fit, or how it is no JSON."""
    if isinstance(cause, ValidationError):
        return wrong_values(cause)[:1]
    said = isinstance(cause, ValueError) and not isinstance(cause, UnicodeError)
    return (str(cause).splitlines()[0],) if said else ()


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
    notes += [f"{k} differ" for k in COMPARED if then.get(k) != found[k]]
    if notes:
        raise error(
            "E301",
            f"{path} is stale: it was made for another model",
            notes=tuple(notes),
            help=("plan again: peftc plan SPEC MODEL -o plan.json",),
        )


def config_hash(config: Any) -> str:
    """SHA-256 of what a configuration says about shapes; not of where or by what it was saved."""
    said = said_by(json.loads(config.to_json_string(use_diff=False)))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def said_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as data, without where or by what it was saved."""
    return {k: v for k, v in config.items() if k not in PROVENANCE}
