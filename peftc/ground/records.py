"""JSON files of our own: read through a pydantic model, sealed by a hash of what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, StringConstraints, ValidationError

from peftc.ground.diagnostics import error
from peftc.ground.files import FORMAT, read_facts

SEAL = "seal"  # the key of a file's hash of all its other values
MOST = 5  # mistakes of one file that are said

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A file in the same folder: no path, so that nothing outside is ever opened.
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00]+$", min_length=1)]


class Record(BaseModel, extra="forbid", strict=True):
    """What is written in a JSON file or in a part of one: no other keys, no other types."""


R = TypeVar("R", bound=Record)


def read_record(
    path: Path, kind: type[R], what: str, make: str, formats: tuple[str, ...] = (FORMAT,)
) -> R:
    """The JSON that a folder of ours is known by; where it has a seal, this is checked.

    Raises:
        PeftcError: E308 where it is not there or of another format, E303 where it is damaged,
            E320 where a value in it was changed.
    """
    facts = read_facts(path, what, make, formats)
    try:
        record = kind.model_validate_json(json.dumps(facts))
    except ValidationError as cause:
        raise error(
            "E303",
            f"{path} is damaged: it does not hold what a {what} has",
            notes=wrong_values(cause),
            help=("copy it again, or make it anew",),
        ) from cause
    if SEAL in facts and seal(facts) != facts[SEAL]:
        raise error(
            "E320",
            f"{path} was changed after it was written",
            notes=("the hash of its values is not the one that stands in it",),
            help=("put it back as it was", f"make it anew: {make}"),
        )
    return record


def wrong_values(cause: ValidationError) -> tuple[str, ...]:
    """Each value that does not fit, by its path of keys: `model.dtype: field required`."""
    said = []
    for wrong in cause.errors(include_url=False)[:MOST]:
        where = ".".join(map(str, wrong["loc"]))
        text = wrong["msg"][:1].lower() + wrong["msg"][1:]
        said.append(f"{where}: {text}" if where else text)
    left = cause.error_count() - len(said)
    return (*said, *([f"and {left} more"] if left else []))


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`facts` with a seal."""
    return {**facts, SEAL: seal(facts)}


def seal(facts: Mapping[str, Any]) -> str:
    """SHA-256 of all values but the seal itself; neither blanks nor the order of keys matter."""
    values = {k: v for k, v in facts.items() if k != SEAL}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
