"""E2xx: a model that cannot be loaded or captured."""

from __future__ import annotations

import json
import shutil
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


def classifier():
    """A model of which a case may change what it likes."""
    return zoo.build("bert", "sequence-classification")


@case("E208", "a quantised checkpoint")
def _(here: Here):
    Path("small").mkdir()
    config = json.loads(Path("model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    Path("small/config.json").write_text(json.dumps(config))
    here.run("apply", "lora", "small", "-o", "out")


@case("E208", "weights of one byte")
def _(here: Here):
    model = classifier()
    query = model.bert.encoder.layer[0].attention.self.query
    query.weight = torch.nn.Parameter(query.weight.data.to(torch.int8), requires_grad=False)
    peftc.apply("lora", model)


@case("E209", "a model without its weights")
def _(here: Here):
    peftc.apply("lora", classifier().to("meta"))


@case("E209", "a model of which a part is elsewhere")
def _(here: Here):
    model = classifier()
    model.bert.encoder.layer[1].to("meta")
    peftc.apply("lora", model)


@case("E210", "a model with adapters of PEFT")
def _(here: Here):
    from peft import LoraConfig, get_peft_model

    peftc.apply("lora", get_peft_model(classifier(), LoraConfig(target_modules=["query"])))


@case("E211", "a wrapper")
def _(here: Here):
    peftc.apply("lora", torch.nn.DataParallel(classifier()))


@case("E211", "a module that is no model")
def _(here: Here):
    peftc.apply("lora", torch.nn.Linear(3, 4))


@case("E212", "a classifier without an id for padding")
def _(here: Here):
    model = zoo.build("gpt2", "sequence-classification")
    model.config.pad_token_id = None
    peftc.apply("lora", model)


@case("E213", "an architecture that is no model")
def _(here: Here):
    from peftc.capture.load import load_model

    load_model("model", architecture="AutoTokenizer")


@case("E214", "embeddings without their config")
def _(here: Here):
    model = classifier()
    model.bert.embeddings.word_embeddings = torch.nn.Embedding(50, 24)
    peftc.apply("lora", model)


@case("E215", "weights that do not fit the config")
def _(here: Here):
    Path("wide").mkdir()
    config = json.loads(Path("model/config.json").read_text())
    Path("wide/config.json").write_text(json.dumps({**config, "vocab_size": 107}))
    shutil.copy("model/model.safetensors", "wide")
    here.run("apply", "lora", "wide", "-o", "out")
