"""E2xx: a model that cannot be loaded or captured."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import zoo
from messages.cases import Here, case
from messages.modeling_odd import OddConfig, OddModel, OddVideo
from transformers import MambaConfig, MambaForCausalLM

import peftc
from peftc.capture import capture


def mamba():
    """A model whose code loops over tokens."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=50, hidden_size=24, num_hidden_layers=1, state_size=6)
    return MambaForCausalLM(config).eval()


@case("E105", "a prefix on a model without attention")
def _(here: Here):
    peftc.plan("ptuning2", zoo.captured_once(mamba(), static_length=4))


@case("E111", "a prompt on a graph of one length")
def _(here: Here):
    peftc.apply("prompt", zoo.captured_once(mamba(), static_length=4))


@case("E201", "a branch that depends on data")
def _(here: Here):
    capture(OddModel(OddConfig(odd="branch")))


@case("E201", "a loop over tokens")
def _(here: Here):
    capture(mamba())


@case("E202", "a graph that holds at one size only")
def _(here: Here):
    capture(OddModel(OddConfig(odd="chunks")))


@case("E203", "an input of an unknown kind")
def _(here: Here):
    capture(OddVideo(OddConfig()))


@case("E204", "an input that the graph does not take")
def _(here: Here):
    here.program(**zoo.inputs(zoo.model(*here.family)), inputs_embed=torch.zeros(3, 8, 24))


@case("E205", "no folder")
def _(here: Here):
    here.run("plan", "lora", "./modle")


@case("E205", "a folder without a model")
def _(here: Here):
    Path("empty").mkdir()
    here.run("plan", "lora", "empty")


@case("E205", "a file")
def _(here: Here):
    here.run("plan", "lora", "model/config.json")


@case("E205", "a configuration of an unknown kind")
def _(here: Here):
    Path("strange").mkdir()
    Path("strange/config.json").write_text(json.dumps({"model_type": "strange"}))
    here.run("plan", "lora", "strange")


@case("E206", "an unknown task")
def _(here: Here):
    here.run("plan", "lora", "model", "--task", "sequence-clasification")


@case("E206", "a task that the architecture does not have")
def _(here: Here):
    here.run("plan", "lora", "model", "--task", "seq2seq-lm")


@case("E207", "no weights")
def _(here: Here):
    Path("shell").mkdir()
    Path("shell/config.json").write_text(Path("model/config.json").read_text())
    here.run("apply", "lora", "shell", "-o", "out")
