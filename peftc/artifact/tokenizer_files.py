"""The files of the tokenizer that stands beside a base model, by their hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftc.capture.weight_files import located
from peftc.ground.files import sha256


def tokenizer_hashes(
    source: str | Path | None, config: Any, revision: str | None = None
) -> dict[str, str]:
    """SHA-256 of each file by its name; none where the place is not known or has no tokenizer."""
    if source is None:
        return {}
    found = {n: located(source, n, revision) for n in names_of(source, config, revision)}
    return {n: sha256(path) for n, path in sorted(found.items()) if path is not None}


def names_of(source: str | Path, config: Any, revision: str | None) -> set[str]:
    """What the files of this tokenizer can be called, as transformers has it."""
    from transformers import tokenization_utils_base as base
    from transformers.utils.hub import CHAT_TEMPLATE_FILE

    general = {
        base.FULL_TOKENIZER_FILE, base.TOKENIZER_CONFIG_FILE, base.SPECIAL_TOKENS_MAP_FILE,
        base.ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE,
    }  # fmt: skip
    classes = tokenizer_classes(located(source, base.TOKENIZER_CONFIG_FILE, revision), config)
    return general.union(*(dict(c.vocab_files_names).values() for c in classes))


def tokenizer_classes(settings: Path | None, config: Any) -> Iterable[Any]:
    """The classes that the tokenizer's own configuration, the model's, and its type name."""
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING,
        tokenizer_class_from_name,
    )

    names = [getattr(config, "tokenizer_class", None)]
    try:
        said = json.loads(settings.read_text(encoding="utf-8")) if settings is not None else {}
        names.append(said.get("tokenizer_class"))
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # refused where the tokenizer is loaded; its hash differs in any case
    found: list[Any] = [tokenizer_class_from_name(n) for n in names if isinstance(n, str)]
    if type(config) in TOKENIZER_MAPPING:
        found.append(TOKENIZER_MAPPING[type(config)])
    return [c for c in found if hasattr(c, "vocab_files_names")]


def changed_files(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """The files that are not those of the lock, with what is the matter with each."""
    said = []
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            said.append(f"{name} is missing")
        elif name not in wanted:
            said.append(f"{name} was not there")
        elif found[name] != wanted[name]:
            said.append(f"{name} is another")
    return said
