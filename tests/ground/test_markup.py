"""Texts of strangers in cards, pages, pictures and on the terminal: shown as they are."""

# What a parser of Markdown gives has no types.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st

import peftc
from peftc.cli.main import run
from peftc.ground.markup import escape, markdown
from peftc.picture import page, picture
from peftc.rewrite.applied import APPLIED

EVIL = (
    'x](http://evil.example)<script>alert("1")</script>\n# big\n\n- `a` | *b* ![i](u) &amp; '
    "\x1b[31mred\x1b[0m\x00\u202e\ufffe [bold]rich[/bold]"
)


@pytest.fixture(scope="module")
def graph():
    spec = {
        "peftc": 1,
        "name": EVIL.replace("\x00", ""),
        "about": "# " + EVIL,
        "tasks": {"t": {"head": {"sequence_classification": {"labels": ["<b>no</b>", EVIL]}}}},
        "insert": [
            {"id": "a", "at": {"module": "encoder.layer.*.output.dense"}, "delta": "vector"}
        ],
    }
    return peftc.apply(spec, zoo.captured("bert", "base", 1))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.said = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)

    def handle_data(self, data):
        self.said += data


def tags(text):
    parser = Tags()
    parser.feed(text)
    return parser


def test_a_card_has_the_names_as_text(graph, tmp_path):
    graph.meta[APPLIED].reference = "models/<img src=x>`\n## more"
    card = (peftc.save(graph, tmp_path / "out") / "README.md").read_text()
    assert len(re.findall(r"(?m)^# ", card)) == 1
    assert re.findall(r"(?m)^## .*", card) == ["## Use"]
    assert not re.search(r"(?<!\\)[<>]", card)
    assert not re.search(r"(?<!\\)\]\(|(?<!\\)!\[|(?<!\\)://", card)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", card)
    assert "big" in card
    assert "alert" in card
    assert "\n    peftc train this/folder --data train.jsonl\n" in card


def test_pages_and_pictures_are_well_formed_and_hold_no_script(graph):
    made = graph.meta[APPLIED].made
    drawn = picture(made)
    ET.fromstring(drawn)
    for text in (page(made, EVIL), drawn):
        found = tags(text)
        assert not {"script", "img", "b"} & set(found.found)
        assert 'alert("1")' in found.said
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ufffe]", text)


@given(st.text())
def test_html_shows_the_text(text):
    shown = escape(text)
    ET.fromstring(f'<a b="{shown}">{shown}</a>')
    kept = html.unescape(shown)
    assert len(kept) == len(text)
    assert all(a == b or a == " " for a, b in zip(kept, text, strict=True))


@given(st.text())
def test_markdown_is_one_line_that_says_the_same(text):
    shown = markdown(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(\\\\)*[<>`*_\[\]|#!&]", shown)
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join("".join(c for c in escape_free(text)).split())


def escape_free(text):
    from peftc.ground.markup import plain

    return plain(text)


def test_the_terminal_shows_names_without_obeying_them(tmp_path, capsys):
    path = tmp_path / "evil.yaml"
    path.write_text(
        'peftc: 1\nname: "a\\e[2J\\nok  fake [bold]b[/bold]"\nabout: "\\e[31m"\n'
        "insert: [{id: a, at: ffn.out, delta: vector}]\n"
    )
    assert run(["check", str(path), "--color", "always"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    assert "[bold]b[/bold]" in out
    assert len(out.splitlines()) == 1
    assert run(["specs", "show", str(path), "--expanded"]) == 0
    assert "\x1b" not in capsys.readouterr().out
