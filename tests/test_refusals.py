"""`plan` refuses what `apply` refuses, word for word, and nothing else."""

from __future__ import annotations

import functools

import own_models
import pytest
import torch
import zoo
from transformers import MambaConfig, MambaModel

import peftc
from peftc.capture import capture
from peftc.ground.diagnostics import PeftcError
from peftc.spec.catalogue import names

PROMPT = {"at": "embed.out", "delta": {"prompt": {"tokens": 4}}}
PREFIX = {"tokens": 4}


def spec(*insert, **more):
    entries = [{"id": f"i{k}", **i} for k, i in enumerate(insert)]
    return {"peftc": 1, "name": "s", "insert": entries, **more}


def prefix(**options):
    return {"at": "attn.kv", "delta": {"prefix": {**PREFIX, **options}}}


TASKS = {n: {"head": {"token_classification": {"labels": 3}}} for n in ("x", "y")}
SPECS = {
    "cached, on top of another": spec(prefix(), prefix(mask="cached")),
    "cached": spec(prefix(mask="cached")),
    "infix": spec(prefix(before=7)),
    "infix outside of the vocabulary": spec(prefix(before=7000)),
    "gated prefix": spec({**prefix(), "compose": {"attend": {"gate": {}}}}),
    "dora": spec({"at": "attn.q", "delta": {"dora": {"rank": 2}}}),
    "dora at a fused part": spec({"at": "attn.v", "delta": {"dora": {"rank": 2}}}),
    "conv": spec({"at": "ffn.out", "delta": {"pipe": [{"conv1d": {"kernel": 3}}]}}),
    "two prompts": spec(PROMPT, PROMPT),
    "too long a prompt": spec({"at": "embed.out", "delta": {"prompt": {"tokens": 64}}}),
    "an open prompt": spec({**PROMPT, "compose": {"prepend": {"trim": False}}}),
    "ensemble": spec({"at": "embed.out", "delta": {"prompt": {"tokens": 4, "ensemble": 2}}}),
    "tasks": spec({**prefix(), "share": "per_task"}, tasks=TASKS),
}  # fmt: skip


@functools.cache
def model_of(name):
    """A captured model."""
    if name == "mamba":
        torch.manual_seed(0)
        config = MambaConfig(hidden_size=24, num_hidden_layers=1, vocab_size=50, state_size=4)
        return capture(MambaModel(config).eval(), static_length=4)
    if name in own_models.KINDS:
        return capture(own_models.OwnModel(own_models.OwnConfig(name)).eval())
    return zoo.captured(*name.split("/"), layers=1)


MODELS = ("bert/base", "mamba", "alibi, interleaved")


def verdict(does, one, program):
    """What a function says to a spec: nothing, or its diagnostics in full."""
    try:
        does(one, program)
    except PeftcError as refusal:
        return str(refusal)
    return None


@pytest.mark.parametrize("model", MODELS)
def test_plan_refuses_what_apply_refuses_in_the_same_words(model):
    program, refused = model_of(model), 0
    every = {s: s for s in names()} if model == MODELS[0] else {}
    for name, one in {**every, **SPECS}.items():
        planned, applied = (verdict(f, one, program) for f in (peftc.plan, peftc.apply))
        assert planned == applied, name
        refused += planned is not None
    assert refused > 2
