"""Strict YAML 1.2 with positions: text in, plain data and the place of every key and value out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftc.diagnostics import Diagnostic, PeftcError, Span, error

LIMIT = 1 << 20  # bytes; no spec is near it, and a hostile file stops here
DEPTH = 40
Where = tuple[str | int, ...]


class Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema of YAML 1.2: no `no`, no octal 010, 1e-4 a number."""


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$",
        "-+.0123456789",
    ),
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
PLAIN = {f"tag:yaml.org,2002:{t}" for t in ("bool", "int", "float", "null", "str", "map", "seq")}


@dataclass
class Source:
    """A parsed file: its data, and where every key and value stands."""

    file: str
    lines: list[str]
    data: Any = None
    keys: dict[Where, Span] = field(default_factory=dict)
    values: dict[Where, Span] = field(default_factory=dict)

    def span(self, *where: str | int) -> Span | None:
        """The place of a value, or of the nearest thing around it that has one."""
        while where:
            if where in self.values:
                return self.values[where]
            where = where[:-1]
        return self.values.get(())

    def key(self, *where: str | int) -> Span | None:
        """The place of a key, or of the value where it is a list's item."""
        return self.keys.get(where) or self.span(*where)


def read_source(path: Path) -> Source:
    """Parse a file.

    Raises:
        PeftcError: E001 for text that is not YAML, E002 for a key given twice, E011 for YAML
            features that specs do not have, E012 for a file too large, E006 for none at all.
    """
    try:
        size = path.stat().st_size
        if size > LIMIT:
            raise error("E012", f"{path} has {size:,} bytes; a spec has at most {LIMIT:,}")
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise error("E006", f"cannot read {path}: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise error("E001", f"{path} is not UTF-8 text") from cause
    return parse(text, str(path))


def parse(text: str, file: str) -> Source:
    """Parse YAML text; see `read_source`."""
    source = Source(file, text.splitlines() or [""])
    if len(text.encode()) > LIMIT:
        raise error("E012", f"{file} has more than {LIMIT:,} bytes")
    try:
        loader = Loader(text)
        refuse_features(text, source)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark
        raise error(
            "E001",
            f"not valid YAML: {cause.problem}",
            span=place(source, mark, 1) if mark else None,
            label=cause.context or "",
        ) from cause
    except (yaml.YAMLError, RecursionError) as cause:
        raise error("E001", f"{file} is not valid YAML: {str(cause).splitlines()[0]}") from cause
    if node is None:
        raise error("E001", f"{file} is empty", help=("copy one: peftc specs cp lora my.yaml",))
    duplicates: list[Diagnostic] = []
    source.data = build(node, (), source, loader, duplicates)
    if duplicates:
        raise PeftcError(duplicates)
    return source


def refuse_features(text: str, source: Source) -> None:
    """Refuse anchors, aliases, tags, directives and deep nesting before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        feature = None
        if isinstance(event, yaml.AliasEvent):
            feature = "aliases"
        elif getattr(event, "anchor", None):
            feature = "anchors"
        elif getattr(event, "tag", None):
            feature = "tags"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            feature = feature or ("this much nesting" if depth > DEPTH else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if feature:
            raise error(
                "E011",
                f"specs have no {feature}",
                span=place(source, event.start_mark, 1),
                help=("write the value out; `vars` and `use` say things once",),
            )


def build(
    node: yaml.Node, where: Where, source: Source, loader: Loader, bad: list[Diagnostic]
) -> Any:
    """Plain data of a node, noting the place of each key and value."""
    source.values[where] = node_span(source, node)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            here = node_span(source, key_node)
            if key in result:
                first = source.keys[(*where, key)].line
                bad.append(
                    Diagnostic(
                        "E002", f"`{key}` is given twice", here, f"first given on line {first}"
                    )
                )
                continue
            source.keys[(*where, key)] = here
            result[key] = build(value_node, (*where, key), source, loader, bad)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [build(n, (*where, k), source, loader, bad) for k, n in enumerate(node.value)]
    if node.tag not in PLAIN:
        return node.value
    return loader.construct_object(node, deep=True)


def node_span(source: Source, node: yaml.Node) -> Span:
    """The place of a node's first line."""
    start, end = node.start_mark, node.end_mark
    width = end.column - start.column if start.line == end.line else 0
    return place(source, start, width)


def place(source: Source, mark: Any, width: int) -> Span:
    """A span from a parser's mark; width 0 means to the end of the line."""
    line = min(mark.line, len(source.lines) - 1)
    text = source.lines[line]
    column = min(mark.column, len(text))
    return Span(source.file, line + 1, column + 1, width or max(1, len(text) - column), text)
