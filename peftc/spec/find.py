"""A shipped name, a path or a mapping -> the parsed source of a spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from peftc.ground.diagnostics import Span, error
from peftc.spec.catalogue import names, path_of
from peftc.spec.parse import parse, read_source
from peftc.spec.problems import near
from peftc.spec.source import Source


def source_of(given: str | Path | Mapping[str, Any]) -> Source:
    """The parsed source of a name, a path or a mapping."""
    if isinstance(given, Mapping):
        text = yaml.safe_dump(plain_data(given), sort_keys=False, allow_unicode=True)
        return parse(text, "<dict>")
    return read_source(find(str(given), Path()))  # a path is shown as it was given


def plain_data(value: Any) -> Any:
    """Mappings and sequences as dicts and lists, for YAML."""
    if isinstance(value, Mapping):
        return {str(k): plain_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(v) for v in value]
    return value


def find(name: str, base: Path, span: Span | None = None, *, within: Path | None = None) -> Path:
    """The file that a name or path means: a shipped spec, or a path from `base`.

    Raises:
        PeftcError: E006 where there is none, E017 where it does not lie `within` that folder, where
            links lead to: what is outside is not looked at, not even for whether it is there.
    """
    if name in names():
        return path_of(name)
    path = base / name
    if within is not None and not lies_in(path, within):
        raise error(
            "E017",
            f"`use: {name}` leads out of the folder of the spec",
            span=span,
            notes=(f"a spec may use shipped specs, and files in {within.resolve()} or below it",),
            help=(
                "copy the file there",
                "where you know what it uses: --allow-use-anywhere; "
                "in Python load_spec(..., allow_use_anywhere=True)",
            ),
        )
    if os.path.isfile(path):
        return path
    if os.path.exists(path):
        what = "a folder" if path.is_dir() else "no regular file"
        raise error("E006", f"{name} is {what}; a spec is a file", span=span)
    if "/" in name or name.endswith((".yaml", ".yml")):
        beside = sorted(p.name for p in path.parent.glob("*.y*ml"))
        meant = [str(Path(name).with_name(n)) for n in near(path.name, beside)]
        help = [f"did you mean `{n}`?" for n in meant]
        raise error("E006", f"{name}: no such file", span=span, help=tuple(help))
    help = [f"did you mean `{n}`?" for n in near(name, names())]
    raise error(
        "E006",
        f"`{name}` is neither a shipped spec nor a file",
        span=span,
        help=(*help, f"shipped specs: {', '.join(names())}"),
    )


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is in a folder or below it."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # no file can have such a name
        return False
