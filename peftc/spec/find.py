"""A shipped name, a path or a mapping -> the parsed source of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from peftc.diagnostics import Span, error
from peftc.spec.catalogue import names, path_of
from peftc.spec.parse import parse, read_source
from peftc.spec.problems import near
from peftc.spec.source import Source


def source_of(given: str | Path | Mapping[str, Any]) -> Source:
    """The parsed source of a name, a path or a mapping."""
    if isinstance(given, Mapping):
        text = yaml.safe_dump(plain_data(given), sort_keys=False, allow_unicode=True)
        return parse(text, "<dict>")
    return read_source(find(str(given), Path.cwd()))


def plain_data(value: Any) -> Any:
    """Mappings and sequences as dicts and lists, for YAML."""
    if isinstance(value, Mapping):
        return {str(k): plain_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(v) for v in value]
    return value


def find(name: str, base: Path, span: Span | None = None) -> Path:
    """The file that a name or path means.

    Raises:
        PeftcError: E006 where there is none.
    """
    if name in names():
        return path_of(name)
    path = base / name
    if path.is_file():
        return path
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
