"""Specs of three tasks in one graph, and inputs whose rows belong to them."""

# Specs are plain dicts, and what a graph gives and holds has names that no type knows.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import copy

import reference
import torch
import zoo

import peftc

TASKS = {
    "ner": {"head": {"token_classification": {"labels": 9}}},
    "topic": {"head": {"sequence_classification": {"labels": ["a", "b", "c"]}}},
    "qa": {"head": "question_answering"},
}
SHAPES = [(5, 9), (2, 6)]
KINDS = ["bert", "gpt2", "llama"]


def spec(*insert, variables=None, **sets):
    """A spec with the three tasks, `sets` being the variables of each."""
    tasks = copy.deepcopy(TASKS)
    for task, own in sets.items():
        tasks[task]["set"] = own
    return {
        "peftc": 1,
        "name": "m",
        "vars": variables or {},
        "tasks": tasks,
        "insert": [{"share": "per_task", **i} for i in insert],
    }


def prefix(tokens="$t", **options):
    return {"id": "p", "at": "attn.kv", "delta": {"prefix": {"tokens": tokens, **options}}}


PREFIX = spec(prefix(), variables={"t": 4}, ner={"t": 2}, qa={"t": 7})
LORA = spec(
    {
        "id": "l",
        "at": ["attn.q", "attn.v"],
        "delta": {"low_rank": {"rank": "$r"}},
        "compose": {"add": {"scale": "6 / $r"}},
    },
    variables={"r": 4},
    ner={"r": 2},
)
BOTTLENECK = spec(
    {
        "id": "b",
        "at": ["attn.out", "ffn.out"],
        "delta": {"bottleneck": {"dim": "$d", "act": "sigmoid", "norm": "before"}},
    },
    variables={"d": 4},
    topic={"d": 3},
)
CASES = {
    "prefix": PREFIX,
    "prefix of one length": spec(prefix(5)),
    "prefix, positions kept": spec(
        prefix(positions="keep"), variables={"t": 4}, ner={"t": 2}
    ),
    "prefix with an MLP each": spec(
        prefix(reparam={"hidden": "$h"}), variables={"t": 4, "h": 7}, ner={"t": 2, "h": 9}
    ),
    "bottleneck": BOTTLENECK,
    "gate": spec(
        {
            "id": "b",
            "at": "ffn.out",
            "delta": {"bottleneck": {"dim": 4, "norm": "after"}},
            "compose": {"gate": {"init": "$g", "per": "channel"}},
        },
        variables={"g": 0.7},
        ner={"g": 0.2},
    ),
    "gates that read": spec(
        {
            "id": "b",
            "at": "ffn.out",
            "delta": {"bottleneck": {"dim": 4}},
            "compose": {"add": {"scale": "$s", "gate": {"reads": "x"}}},
        },
        {**prefix(5), "compose": {"attend": {"gate": {}}}},
        variables={"s": 2},
        ner={"s": 3},
    ),
    "lora": LORA,
    "vector": spec({"id": "v", "at": ["attn.k", "ffn.act"], "delta": "vector"}),
    "prompt": spec({"id": "v", "at": "embed.out", "delta": {"prompt": {"tokens": 3}}}),
    "p-tuning": spec({"id": "v", "use": "ptuning", "set": {"tokens": 3, "hidden": 6}}),
    "one prefix for all": spec({**prefix(5), "share": "all_tasks"}),
}  # fmt: skip


def applied(written, kind="bert", noise=0.3, layers=None):
    graph = peftc.apply(written, zoo.captured(kind, "base", layers))
    reference.randomise(graph, std=noise)
    return graph


def mixed(kind, batch, length):
    """Inputs, and a task for each row: all three in any three rows."""
    inputs = zoo.inputs(zoo.model(kind), batch, length)
    return inputs, (2 * torch.arange(batch)) % 3
