"""What to type next: commands as a shell reads them, which work where they are said."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any


def command(*words: object) -> str:
    """`peftc` and these words, each quoted where a shell needs it."""
    return shlex.join(["peftc", *map(str, words)])


def flags(given: Mapping[str, Any]) -> list[str]:
    """Options that were given, as words: a value, several, or none where it is a switch."""
    words: list[str] = []
    for name, value in given.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            for one in value if isinstance(value, list) else [value]:
                words += [name, str(one)]
    return words


def free(name: str) -> str:
    """A path like `name` where nothing lies yet: nothing is overwritten without --force."""
    path = Path(name)
    others = (path.with_stem(f"{path.stem}-{k}") for k in count(2))
    return name if not path.exists() else str(next(p for p in others if not p.exists()))


def training(graph: Any, folder: Path, *, trust: bool = False) -> str | None:
    """The command that trains an artifact; None where rows of text cannot train it."""
    import peftc
    from peftc.capture.load import load_tokenizer
    from peftc.ground.diagnostics import PeftcError
    from peftc.rewrite.applied import APPLIED
    from peftc.train.task import Task

    tasks = graph.signature.tasks
    try:
        kinds = [Task.of(graph, name) for name in tasks or [None]]
        load_tokenizer(graph.meta[APPLIED].reference)
    except PeftcError:
        return None
    if (graph.signature.loss is None and not tasks) or not peftc.trainable(graph):
        return None
    files = [f"{t.name}={t.name}.jsonl" if len(kinds) > 1 else "train.jsonl" for t in kinds]
    return command("train", folder, *flags({"--data": files, "--trust-remote-code": trust}))
