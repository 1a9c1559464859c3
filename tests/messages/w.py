"""Warnings."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import zoo
from messages.cases import Here, case

import peftc
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


@case("W401", "prefixes and a prompt for PEFT")
def _(here: Here):
    base = zoo.captured("llama", "causal-lm", 1)
    made = [peftc.apply(s, base, set={"tokens": 5}) for s in ("prefix", "prompt")]
    own: dict[str, Any] = {"id": "p", "at": "attn.kv", "stack": "decoder"}
    own["delta"] = {"prefix": {"tokens": 5, "mask": "cached"}}
    two = zoo.captured("t5", "seq2seq-lm", 1)
    made.append(peftc.apply({"peftc": 1, "name": "n", "insert": [own]}, two))
    found = [peftc.export(g, "peft", f"out{k}").notes for k, g in enumerate(made)]
    return SimpleNamespace(notes=[n for notes in found for n in notes])
