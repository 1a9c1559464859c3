"""Warnings."""

from __future__ import annotations

from messages.cases import Here, case


@case("W102", "an optional insertion that matches nothing")
def _(here: Here):
    return here.insert("at: cross.kv\ndelta: {prefix: {tokens: 4}}\noptional: true")
