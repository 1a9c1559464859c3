"""Texts that others wrote, put into Markdown, HTML and SVG: they are shown, and mean nothing there.

Names of specs and models, labels, and lines of a spec come from whoever made them.
"""

from __future__ import annotations

import html
import re
import unicodedata

SPECIAL = re.compile(r"[\\`*_\[\]<>|~#!$@&]")  # what means something within a line of Markdown
START = re.compile(r"^([-+=:]|\d+(?=[.)]))")  # at its beginning: a list, a rule, a heading
HIDDEN = ("Cc", "Cf", "Cs")  # control characters, marks that turn the direction of text, halves
NO_TEXT = "\ufffe\uffff"


def plain(text: str, keep: str = "") -> str:
    """A text whose characters that nobody sees are blanks, but for those to keep."""
    hidden = (c not in keep and (unicodedata.category(c) in HIDDEN or c in NO_TEXT) for c in text)
    return "".join(" " if h else c for c, h in zip(text, hidden, strict=True))


def markdown(text: str) -> str:
    """One line of Markdown that shows the text as it is: no markup, no HTML, no new line."""
    line = " ".join(plain(text).split())
    line = SPECIAL.sub(r"\\\g<0>", line).replace("://", "\\://")  # an address makes itself a link
    return START.sub(lambda m: m[0] + "\\." if m[0].isdigit() else "\\" + m[0], line)


def escape(text: str) -> str:
    """HTML or SVG that shows the text as it is, in an element or in an attribute's quotes."""
    return html.escape(plain(text, keep="\n\t"))
