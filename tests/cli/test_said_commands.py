"""Every command that peftc, its pages and its examples name is one that it understands."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

import peftc
from peftc.cli.main import build

HOME = Path(peftc.__file__).parent
ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(build())
VERBS = "|".join(GROUP.list_commands(None))
COMMAND = re.compile(
    rf"""(?m)(?:`|^ *(?:\$ )?|: +)peftc ((?:{VERBS})\b[^`\n;]*)"""  # in quotes, a line, behind a :
)
OPTION = re.compile(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*(?![-\w])")
OTHERS = ("model.py", "drawing.py", "page.py")  # options of pip, and variables of CSS
SAID_AFTER = re.compile(r"   or   |  and  | +#|: | > |  ->  ")  # where another begins, or a remark


def texts():
    """(place, text) of every text in the sources, formatted parts as X, and of every page."""
    for path in (*HOME.rglob("*.py"), *(HOME / "passes").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "X" for p in node.values]
                yield path.name, "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value
    for path in (*HOME.glob("explanations/*.md"), *ROOT.glob("docs/*.md"), ROOT / "README.md"):
        yield path.name, path.read_text()


def commands():
    """The commands in them, each once, with a place where it is said."""
    found = {}
    for place, text in texts():
        for words in COMMAND.findall(text):
            found.setdefault(SAID_AFTER.split(words)[0].strip(), place)
    return sorted(found.items())


def understood(words):
    """Parse a command line, running nothing; of a verb with options alone, only these."""
    group, context, rest = GROUP, None, words
    while hasattr(group, "list_commands") and (group is GROUP or rest):
        context = group.make_context("peftc", list(rest), parent=context)
        _, group, rest = group.resolve_command(context, context._protected_args + context.args)
    names = [n for p in group.get_params(context) for n in (*p.opts, *p.secondary_opts)]
    assert not [w for w in rest if w.startswith("-") and w not in (*names, "--help")]
    if rest and not rest[0].startswith("-"):
        group.make_context("peftc", list(rest), parent=context)


def options(group, context=None):
    """Every option of every verb."""
    context = group.context_class(group, info_name="peftc", parent=context)
    found = {n for p in group.get_params(context) for n in (*p.opts, *p.secondary_opts)}
    for name in group.list_commands(context) if hasattr(group, "list_commands") else ():
        found |= options(group.get_command(context, name), context)
    return found


def test_there_are_many():
    assert len(commands()) > 50


def test_options_that_are_named_are_there():
    there = options(GROUP)
    named = {(o, p) for p, t in texts() if p not in OTHERS for o in OPTION.findall(t)}
    assert not {(o, p) for o, p in named if o not in there}


@pytest.mark.parametrize("said", commands(), ids=lambda c: c[0])
def test_it_is_understood(said):
    understood(shlex.split(said[0]))
