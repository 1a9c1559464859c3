"""A file of JSON lines: a row at a time, strictly read, or what is wrong with it."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftc.ground.diagnostics import Diagnostic, Span, error
from peftc.ground.reading import opened

LONGEST = 1 << 26  # bytes of a row
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class WrongRow(Exception):
    """A row that cannot be taken: why, and what to write instead."""

    def __init__(self, message: str, *help: str) -> None:
        super().__init__(message)
        self.help = help

    def at(self, path: Path, number: int, line: bytes) -> Diagnostic:
        """E082 at that line of a file."""
        text = line[:200].decode(errors="replace")
        span = Span(str(path), number, 1, min(len(text), 60), text)
        return Diagnostic("E082", str(self), span, help=self.help)


def json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""The lines of a file that are not blank, each with its number, one in memory at a time.

    A line ends at "\n" or "\r\n" and nowhere else: texts hold U+2028 and its kin. A UTF-8 byte
    order mark at the beginning is passed over. Of a line that is too long a part is given.

    Raises:
        PeftcError: E081 where the file cannot be read, or is UTF-16.
    """
    try:
        with opened(path) as file:
            number = 0
            while line := file.readline(LONGEST + 1):
                number += 1
                if number == 1:
                    if line.startswith(UTF_16):
                        raise error("E081", f"{path} is UTF-16 text", help=("save it as UTF-8",))
                    line = line.removeprefix(codecs.BOM_UTF8)
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(1 << 20)
                if line.strip():
                    yield number, line.removesuffix(b"\n").removesuffix(b"\r")
    except OSError as cause:
        raise error("E081", f"cannot read {path}: {cause.strerror or cause}") from cause


def parsed(line: bytes) -> Any:
    """The value of a line of JSON, as RFC 8259 has it.

    Raises:
        WrongRow: where it is none, or one that other readers would read otherwise: a key given
            twice, NaN, infinity, a number that no float holds, half of a surrogate pair.
    """
    if len(line) > LONGEST:
        raise WrongRow(f"a row of more than {LONGEST:,} bytes")
    try:
        text = line.decode()
    except UnicodeDecodeError as cause:
        found = f"the byte 0x{line[cause.start]:02x}, the {cause.start + 1:,}th of the line"
        raise WrongRow(f"not UTF-8: {found}", "save the file as UTF-8") from cause
    try:
        value = json.loads(
            text,
            object_pairs_hook=mapping,
            parse_constant=no_number,
            parse_int=whole,
            parse_float=finite,
        )
    except json.JSONDecodeError as cause:
        raise WrongRow(f"not JSON: {cause.msg}") from cause
    except RecursionError as cause:
        raise WrongRow("not a row: lists or mappings nested a thousand deep") from cause
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as cause:
            half = f"\\u{ord(cause.object[cause.start]):04x}"
            raise WrongRow(f"{half} is half of a character: the other half is missing") from cause
    return value


def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of its keys given twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise WrongRow(f"`{key[:40]}` is given twice")
        result[key] = value
    return result


def no_number(name: str) -> float:
    """JSON has no NaN and no infinities."""
    raise WrongRow(f"not JSON: {name} is no number")


def whole(digits: str) -> int:
    """An integer, of no more digits than Python reads."""
    try:
        return int(digits)
    except ValueError as cause:
        raise WrongRow(f"a number of {len(digits):,} digits") from cause


def finite(text: str) -> float:
    """A number that a float holds."""
    if not math.isfinite(value := float(text)):
        raise WrongRow(f"`{text[:40]}` is too large a number")
    return value
