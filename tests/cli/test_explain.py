"""`peftc explain`: every code that the program can say has a page."""

from __future__ import annotations

import re
from pathlib import Path

import peftc
from peftc.cli.main import run

HOME = Path(peftc.__file__).parent
PAGES = {p.stem: p.read_text() for p in (HOME / "explanations").glob("*.md")}


def test_every_code_is_explained_and_no_other():
    sources = [*HOME.rglob("*.py"), *(HOME / "passes").glob("*.py")]
    said = {c for p in sources for c in re.findall(r'"([EW]\d{3})"', p.read_text())}
    assert said == set(PAGES)


def test_a_page_has_a_title_and_lines_that_fit():
    for code, text in PAGES.items():
        assert text.startswith(f"{code}: ")
        assert text.count("\n") > 2
        assert max(map(len, text.splitlines())) <= 90, code


def test_explain(capsys):
    assert run(["explain", "e101"]) == 0
    assert capsys.readouterr().out == PAGES["E101"]
    assert run(["explain", "E11"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error[E008]: there is no error E11\n  = help: did you mean E")
