"""Strict YAML 1.2 with positions: text in, plain data and the place of every key and value out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftc.diagnostics import Diagnostic, Mistakes, PeftcError, Span, error

# No spec is near these; a hostile file stops here.
LIMIT = 1 << 20  # bytes
VALUES = 20_000
DEPTH = 40
LARGEST = 2**31 - 1  # integers: that many of anything, times a width, is a number that torch has
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
        size = path.stat().st_size
        if size > LIMIT:
            raise too_large(str(path), size)
        data = path.read_bytes()
    except OSError as cause:
        raise error(
            "E006",
            f"cannot read {path}: {cause.strerror or cause}",
            help=("check its permissions: ls -l shows them",),
        ) from cause
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise not_utf8(str(path), data, cause) from cause


def too_large(file: str, size: int) -> PeftcError:
    """E012."""
    message = f"{file} has {size:,} bytes; a spec has at most {LIMIT:,}"
    return error("E012", message, help=("is it a spec? they have a few hundred bytes",))


def not_utf8(file: str, data: bytes, cause: UnicodeDecodeError) -> PeftcError:
    """E001 at the first byte that is not UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return error("E001", f"{file} is UTF-16 text", help=("save it as UTF-8",))
    before = data[: cause.start].decode("utf-8-sig")
    text = (before.splitlines() or [""])[-1] if not before.endswith("\n") else ""
    rest = data[cause.start :].splitlines()[0].decode("utf-8", errors="replace")
    span = Span(file, before.count("\n") + 1, len(text) + 1, 1, text + rest)
    label = f"the byte 0x{data[cause.start]:02x}"
    return error("E001", f"{file} is not UTF-8 text", span=span, label=label, help=(
        "save it as UTF-8",))  # fmt: skip


def parse(text: str, file: str) -> Source:
    """Parse YAML text; see `read_source`."""
    source = Source(file, re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text))
    if len(text.encode(errors="surrogatepass")) > LIMIT:
        raise too_large(file, len(text.encode(errors="surrogatepass")))
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
        line = text.count("\n", 0, cause.position)
        column = cause.position - text.rfind("\n", 0, cause.position)
        span = Span(file, line + 1, column, 1, source.lines[line])
        raise error("E001", f"not valid YAML: a control character, {cause.character!r}"
                    if isinstance(cause.character, str) else
                    f"not valid YAML: a control character, 0x{cause.character:02x}",
                    span=span, help=("delete it",)) from cause  # fmt: skip
    except (yaml.YAMLError, RecursionError, ValueError) as cause:
        raise error("E001", f"{file} is not valid YAML: {str(cause).splitlines()[0]}") from cause
    if node is None:
        raise error("E001", f"{file} is empty", help=("copy one: peftc specs cp lora my.yaml",))
    if wrong:
        raise PeftcError(wrong)
    return source


def not_yaml(source: Source, text: str, cause: yaml.MarkedYAMLError) -> PeftcError:
    """E001 where the parser stopped, with what is likely meant."""
    mark, problem = cause.problem_mark, str(cause.problem)
    help: list[str] = []
    if "'\\t'" in problem:
        help.append("YAML is indented with blanks, not with tabs")
    elif "stream end" in problem and (opened := open_bracket(text)) is not None:
        what = source.lines[opened.line][opened.column]
        help.append(
            f"the `{what}` on line {opened.line + 1}, column {opened.column + 1} is never closed"
        )
    elif mark is not None and (said := neighbours(source.lines, mark.line)):
        help.append(said)
    if "single document" in str(cause.context):
        help.append("a file holds one spec: delete the second `---` and what follows")
    span = place(source, mark, 1) if mark else None
    context = cause.context if cause.context_mark is not None else None
    label = str(context or "")
    return error("E001", f"not valid YAML: {problem}", span=span, label=label, help=tuple(help))


def open_bracket(text: str) -> yaml.Mark | None:
    """Where the innermost bracket stands that is never closed."""
    opened: list[yaml.Mark] = []
    try:
        for token in yaml.scan(text, Loader=Loader):
            if isinstance(token, yaml.FlowMappingStartToken | yaml.FlowSequenceStartToken):
                opened.append(token.start_mark)
            elif isinstance(token, yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken):
                opened.pop()
    except (yaml.YAMLError, IndexError):
        pass  # what was open before the scanner stopped
    return opened[-1] if opened else None


def neighbours(lines: list[str], line: int) -> str:
    """How a line's column differs from that of the line above, where it is off by a little."""
    above = next((k for k in range(line - 1, -1, -1) if lines[k].strip()), None)
    if above is None or line >= len(lines):
        return ""
    # `- id: a` puts its keys two columns further in.
    column = [len(t) - len(t.lstrip(" -")) for t in (lines[above], lines[line])]
    by = column[1] - column[0]
    if by == 0 or abs(by) > 3:
        return ""
    count = "one column" if abs(by) == 1 else f"{abs(by)} columns"
    side = "right" if by > 0 else "left"
    return f"line {line + 1} starts {count} {side} of its neighbours on line {above + 1}"


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
                span=place(source, event.start_mark, 1),
                help=help if depth <= DEPTH else (),
            )
    return events


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
    return place(source, start, width)


def place(source: Source, mark: Any, width: int) -> Span:
    """A span from a parser's mark; width 0 means to the end of the line."""
    line = min(mark.line, len(source.lines) - 1)
    text, column = source.lines[line], mark.column
    if line and not text and mark.line >= line:  # the end of the file: behind its last line
        line -= 1
        text = source.lines[line]
        column = len(text)
    column = min(column, len(text))
    return Span(source.file, line + 1, column + 1, width or max(1, len(text) - column), text)
