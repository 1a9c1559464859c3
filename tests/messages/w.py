"""Warnings."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from messages.cases import Here, case

from peftc.dataflow import find_sites
from peftc.merging import apart, foreseen
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


def folded(here: Here, text: str, family: tuple[str, str] | None = None) -> SimpleNamespace:
    """What `plan` says besides of what is to be merged."""
    plan = here.plan(text, family)
    return SimpleNamespace(notes=apart(plan.spec, foreseen(plan)))


@case("W403", "an update of a weight that serves two places")
def _(here: Here):
    text = (
        "peftc: 1\nname: n\ninsert:\n"
        "  - {id: a, at: embed.out, delta: {low_rank: {rank: 2}}}\nexport: {fold: [a]}\n"
    )
    return folded(here, text, ("gpt2", "causal-lm"))


@case("W403", "pieces of several tasks")
def _(here: Here):
    text = (
        "peftc: 1\nname: n\n"
        "tasks:\n  x: {head: question_answering}\n  y: {head: question_answering}\n"
        "insert:\n  - {id: a, at: attn.q, share: per_task, delta: vector}\n"
        "export: {fold: [a]}\n"
    )
    return folded(here, text, ("bert", "base"))
