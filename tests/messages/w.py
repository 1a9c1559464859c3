"""Warnings."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import zoo
from messages.cases import Here, case
from sealing import older, reseal

import peftc
from peftc.dataflow import find_sites
from peftc.planning.make import make_plan
from peftc.rewrite.merging import apart, foreseen
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


def told(act: Callable[[], Any]) -> Any:
    """What has the warnings of an act as its notes."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        act()
    return SimpleNamespace(notes=[w.message.diagnostic for w in found])


@case("W110", "another tokenizer")
def _(here: Here):
    folder = here.artifact()
    data = json.loads(Path("model/tokenizer.json").read_text())
    data["model"]["vocab"] |= {"cat": 7, "dog": 6}
    Path("other").mkdir()
    for path in Path("model").iterdir():
        Path("other", path.name).write_bytes(path.read_bytes())
    Path("other/tokenizer.json").write_text(json.dumps(data))
    return told(lambda: here.run("apply", str(folder), "--without", "0", "-o", "less",
                                 "other"))  # fmt: skip


@case("W110", "positions computed by another processor")
def _(here: Here):
    llama = zoo.build("llama", "sequence-classification")
    folder = peftc.save(peftc.apply("lora", llama), Path("out"))
    llama.model.rotary_emb.inv_freq.mul_(1 + 2e-7)
    return told(lambda: peftc.load(folder, llama))


@case("W110", "another loss")
def _(here: Here):
    folder = here.artifact()
    config = {"problem_type": "regression", "id2label": {"0": "no"}}
    reseal(folder, lambda lock: lock["model"]["config"].update(config))
    model = zoo.build(*here.family)
    model.config.problem_type = "single_label_classification"
    return told(lambda: peftc.load(folder, model))


@case("W111", "an artifact of the older format")
def _(here: Here):
    from peftc.capture.listing import fingerprint

    folder = here.artifact()
    reseal(folder, older)
    graph = fingerprint(peftc.apply("lora", here.program), pieces=False)
    reseal(folder, lambda lock: lock.update(graph_sha256=graph))
    return told(lambda: peftc.load(folder, here.program))


@case("W112", "a card that was edited")
def _(here: Here):
    folder = here.artifact()
    (folder / "README.md").write_text("mine")
    (folder / "graph.html").unlink()
    return told(lambda: peftc.load(folder, here.program))


@case("W113", "a base that was resized in memory")
def _(here: Here):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained("model")
    model.resize_token_embeddings(107, mean_resizing=False)
    return told(lambda: peftc.save(peftc.apply("lora", model), "out"))


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
