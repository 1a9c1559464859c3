"""Why a file cannot be read as YAML: the words of E001 and E012, with what is likely meant."""

from __future__ import annotations

import yaml

from peftc.ground.diagnostics import PeftcError, Span, error
from peftc.spec.source import Source, lines_of


def too_large(file: str, size: int, limit: int) -> PeftcError:
    """E012."""
    message = f"{file} has {size:,} bytes; a spec has at most {limit:,}"
    return error("E012", message, help=("is it a spec? they have a few hundred bytes",))


def not_utf8(file: str, cause: UnicodeDecodeError) -> PeftcError:
    """E001 at the first byte that is not UTF-8."""
    data = cause.object  # what was decoded: the bytes behind a byte order mark
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return error("E001", f"{file} is UTF-16 text", help=("save it as UTF-8",))
    *above, text = lines_of(data[: cause.start].decode())
    rest = lines_of(data[cause.start :].decode(errors="replace"))[0]
    span = Span(file, len(above) + 1, len(text) + 1, 1, text + rest)
    label = f"the byte 0x{data[cause.start]:02x}"
    help = ("save it as UTF-8",)
    return error("E001", f"{file} is not UTF-8 text", span=span, label=label, help=help)


def control_character(file: str, text: str, cause: yaml.reader.ReaderError) -> PeftcError:
    """E001 at a character that YAML does not have."""
    *above, before = lines_of(text[: cause.position])
    rest = lines_of(text[cause.position :])[0]
    span = Span(file, len(above) + 1, len(before) + 1, 1, before + rest)
    message = f"not valid YAML: a control character, 0x{cause.character:02x}"
    return error("E001", message, span=span, help=("delete it",))


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
    span = source.at(mark, 1) if mark else None
    context = cause.context if cause.context_mark is not None else None
    label = str(context or "")
    return error("E001", f"not valid YAML: {problem}", span=span, label=label, help=tuple(help))


def open_bracket(text: str) -> yaml.Mark | None:
    """Where the innermost bracket stands that is never closed."""
    opened: list[yaml.Mark] = []
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
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
