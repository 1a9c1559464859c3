"""Strict YAML 1.2 with positions: text in, plain data and the place of every key and value out."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from peftc.ground.diagnostics import Diagnostic, Mistakes, PeftcError, Span, error
from peftc.ground.reading import first_bytes
from peftc.spec.source import Source, Where, lines_of
from peftc.spec.unreadable import control_character, not_utf8, not_yaml, too_large

# No spec is near these; a hostile file stops here.
LIMIT = 1 << 20  # bytes
VALUES = 20_000
DEPTH = 40
LARGEST = 2**31 - 1  # integers: that many of anything, times a width, is a number that torch has


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
HALF = re.compile(r"[\ud800-\udfff]")  # what "\ud800" is read as; no file can hold it
PLAIN = {f"tag:yaml.org,2002:{t}" for t in ("bool", "int", "float", "null", "str", "map", "seq")}


def read_source(path: Path) -> Source:
    """Parse a file.

    Raises:
        PeftcError: as `read_text`; E001 for text that is not YAML, E002 for a key given twice,
            E011 for YAML features that specs do not have.
    """
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a file, of a size that a spec may have.

    Raises:
        PeftcError: E001 for another encoding, E012 for a file too large, E006 for none at all.
    """
    try:
        data = first_bytes(path, LIMIT + 1)
        if len(data) > LIMIT:
            raise too_large(str(path), max(len(data), path.stat().st_size), LIMIT)
    except OSError as cause:
        raise error(
            "E006",
            f"cannot read {path}: {cause.strerror or cause}",
            help=("check its permissions: ls -l shows them",),
        ) from cause
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise not_utf8(str(path), cause) from cause


def parse(text: str, file: str) -> Source:
    """Parse YAML text; see `read_source`."""
    source = Source(file, lines_of(text))
    size = len(text.encode(errors="surrogatepass"))
    if size > LIMIT:
        raise too_large(file, size, LIMIT)
    wrong = Mistakes()
    try:
        loader = Loader(text)
        events = plain_events(loader, source)
        loader.state = iter(events).__next__  # the composer reads these: a text is scanned once
        node = loader.get_single_node()
        if node is not None:
            source.data = build(node, (), source, loader, wrong)
    except yaml.MarkedYAMLError as cause:
        raise not_yaml(source, text, cause) from cause
    except yaml.reader.ReaderError as cause:
        raise control_character(file, text, cause) from cause
    except (yaml.YAMLError, RecursionError, ValueError) as cause:
        raise error("E001", f"{file} is not valid YAML: {str(cause).splitlines()[0]}") from cause
    if node is None:
        raise error("E001", f"{file} is empty", help=("copy one: peftc specs cp lora my.yaml",))
    if wrong:
        raise PeftcError(wrong)
    return source


def plain_events(loader: Loader, source: Source) -> list[yaml.Event]:
    """The events of a text; anchors, aliases, tags, deep nesting and masses are refused."""
    depth = 0
    events: list[yaml.Event] = []
    while loader.check_event():
        event = loader.get_event()
        events.append(event)
        if len(events) > VALUES + 1:
            message = f"{source.file} has more than {VALUES:,} values"
            raise error("E012", message, help=("is it a spec? they have a few dozen",))
        feature = None
        if isinstance(event, yaml.AliasEvent):
            feature = "aliases"
        elif getattr(event, "anchor", None):
            feature = "anchors"
        elif getattr(event, "tag", None):
            feature = "tags"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            deep = f"more than {DEPTH} levels of nesting"
            feature = feature or (deep if depth > DEPTH else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if feature:
            help = ("write the value out; `vars` and `use` say things once",)
            raise error(
                "E011",
                f"specs have no {feature}",
                span=source.at(event.start_mark, 1),
                help=help if depth <= DEPTH else (),
            )
    return events


def build(
    node: yaml.Node, where: Where, source: Source, loader: Loader, bad: list[Diagnostic]
) -> Any:
    """Plain data of a node, noting the place of each key and value."""
    source.values[where] = here = node_span(source, node)
    if isinstance(node, yaml.ScalarNode) and HALF.search(node.value):
        message = "half of a character: the other surrogate is missing"
        bad.append(Diagnostic("E001", message, here, help=("\\U0001F600 is one escape",)))
        return "?"
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
    try:
        value = loader.construct_object(node, deep=True)
    except ValueError:  # thousands of digits
        value = math.inf
    if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        here = source.values[where]
        bad.append(Diagnostic("E005", "no number here can be that large", here, "beyond 2^31"))
        return 1
    return value


def node_span(source: Source, node: yaml.Node) -> Span:
    """The place of a node's first line."""
    start, end = node.start_mark, node.end_mark
    width = end.column - start.column if start.line == end.line else 0
    return source.at(start, width)
