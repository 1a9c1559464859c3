"""Warnings."""

from __future__ import annotations

from dataclasses import replace

from messages.cases import Here, case

from peftc.dataflow import find_sites
from peftc.planner import make_plan
from peftc.spec import load_spec


@case("W102", "an optional insertion that matches nothing")
def _(here: Here):
    return here.insert("at: cross.kv\ndelta: {prefix: {tokens: 4}}\noptional: true")


@case("W101", "a role that some blocks have")
def _(here: Here):
    sites = find_sites(here.program.clone())
    few = tuple(a for a in sites.attentions if a.layer == 1)
    path = here.write(
        "peftc: 1\nname: n\ninsert:\n  - {id: a, at: attn.kv, delta: {prefix: {tokens: 4}}}\n"
    )
    return make_plan(load_spec(path), replace(sites, attentions=few))
