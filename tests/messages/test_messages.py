"""What peftc says, literally: every code, piped and on a terminal of 80 columns."""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import re
import sys
from pathlib import Path

import pytest
from messages.cases import CASES, Here, said

import peftc
from peftc.cli.console import complain

FOLDER = Path(__file__).parent
for path in sorted(FOLDER.glob("[ew]*.py")):
    importlib.import_module(f"messages.{path.stem}")
HOW = "PEFTC_MESSAGES=write pytest tests/messages   writes it; read it as a user before you commit"
HOME = Path(peftc.__file__).parent
# Facts of one machine or one release, and lists that grow with every spec and code.
VARYING = (
    (re.compile(re.escape(str(HOME))), "<peftc>"),
    (re.compile(r"\S*/tiny-bert"), "<base>"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "<hash>"),
    (re.compile(r"(?<= )[\d,]+ bytes"), "<N> bytes"),
    (re.compile(r"(?<=^shipped specs: ).*"), "<specs>"),
    (re.compile(r"(?<=^codes: ).*"), "<codes>"),
    (re.compile(r"(?<=^targets: ).*"), "<targets>"),
    (re.compile(r"\b(torch|transformers|safetensors)( is)? \d+\.[\w.+]*"), r"\1\2 <version>"),
)


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(diagnostics, stream) -> str:
    """What `complain` prints to a stream, where a terminal has 80 columns."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "stderr", stream)
        for name, value in {"COLUMNS": "80", "LINES": "25", "TERM": "xterm-256color"}.items():
            monkeypatch.setenv(name, value)
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        complain(diagnostics)
    return stream.getvalue()


def stable(value, folder: Path):
    """A diagnostic or a part of one, without what differs from run to run."""
    if isinstance(value, tuple):
        return tuple(stable(v, folder) for v in value)
    if dataclasses.is_dataclass(value):
        parts = {f.name: stable(getattr(value, f.name), folder) for f in dataclasses.fields(value)}
        return type(value)(**parts)
    if not isinstance(value, str):
        return value
    for path in (folder.resolve(), folder):
        value = value.replace(f"{path}/", "").replace(str(path), "HERE")
    for pattern, name in VARYING:
        value = pattern.sub(name, value)
    return value


@pytest.mark.parametrize("code", sorted(CASES))
def test_what_is_said(code, tmp_path, model_folder):
    parts = []
    for number, (title, mistake) in enumerate(CASES[code]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model").symlink_to(model_folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(folder)
            found = said(code, mistake, Here(folder, monkeypatch))
        found = [stable(d, folder) for d in found]
        piped, coloured = shown(found, io.StringIO()), shown(found, Terminal())
        narrow = re.sub(r"\x1b\[[\d;]*m", "", coloured)
        assert "\x1b" not in piped
        assert "\x1b[" in coloured
        assert all(len(t) <= 80 or " " not in t.strip() for t in narrow.splitlines()), narrow
        parts.append(f"## {title}\n\n{piped}")
        if narrow != piped:
            parts.append(f"## {title}, 80 columns\n\n{narrow}")
    path, text = FOLDER / f"{code}.txt", "\n".join(parts)
    if os.environ.get("PEFTC_MESSAGES") == "write":
        path.write_text(text)
    assert path.is_file(), f"{path} is not there. {HOW}"
    assert text == path.read_text(), HOW


def test_every_code_has_a_message_here_and_no_other():
    sources = [*HOME.rglob("*.py"), *(HOME / "passes").glob("*.py")]
    codes = {c for p in sources for c in re.findall(r'"([EW]\d{3})"', p.read_text())}
    missing = sorted(codes - CASES.keys())
    assert not missing, (
        f"{', '.join(missing)}: add a case to tests/messages/{missing[0][:2].lower()}.py, "
        f"a mistake that peftc answers with it; then {HOW}"
    )
    assert not CASES.keys() - codes, "cases of codes that peftc no longer has"
    assert {p.stem for p in FOLDER.glob("*.txt")} == set(CASES)
