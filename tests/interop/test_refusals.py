"""What has no equivalent, is damaged, or belongs to another model: refused, with the reason."""

from __future__ import annotations

import json

import pytest
import torch
import zoo
from safetensors.torch import save_file

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.interop.importing import opened

LORA = {
    "peft_type": "LORA", "task_type": None, "r": 3, "lora_alpha": 6, "target_modules": ["query"],
    "inference_mode": True,
}  # fmt: skip
QUERY = "base_model.model.encoder.layer.{}.attention.self.query."


def tensors(layers=(0, 1, 2), width=24):
    found = {}
    for k in layers:
        found[QUERY.format(k) + "lora_A.weight"] = torch.ones(3, width)
        found[QUERY.format(k) + "lora_B.weight"] = torch.ones(24, 3)
    return found


def checkpoint(folder, config, values=None):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors() if values is None else values, folder / "adapter_model.safetensors")
    return folder


def refused(call, *args):
    with pytest.raises(PeftcError) as refusal:
        call(*args)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"init_lora_weights": "pissa"}, "E312]: {}: init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "E312]: {}: init_lora_weights is 'olora'"),
        (
            {"loftq_config": {"loftq_bits": 4}},
            "E312]: {} uses what has no equivalent: loftq_config",
        ),
        (
            {"target_parameters": ["mlp.experts"], "alora_invocation_tokens": [1]},
            "E312]: {} uses what has no equivalent: alora_invocation_tokens, target_parameters",
        ),
        ({"peft_type": "XLORA"}, "E312]: {} is of peft_type XLORA, which has no equivalent"),
        ({"peft_type": "LOHA"}, "E312]: {} is of peft_type LOHA, which has no equivalent"),
        ({"rak": 8}, "E314]: {} has unknown options: rak"),
        ({"lora_alpha": "16"}, "E314]: {}: `lora_alpha` is '16', not a positive number"),
    ],
)
def test_options_without_equivalent(change, first, tmp_path):
    folder = checkpoint(tmp_path / "c", {**LORA, **change})
    text = refused(opened, folder)
    assert text.startswith("error[" + first.format(folder / "adapter_config.json"))


def test_folders_that_are_no_checkpoint(tmp_path):
    assert refused(opened, tmp_path / "no").startswith(
        f"error[E310]: {tmp_path / 'no'}: no such folder"
    )
    assert refused(opened, tmp_path) == (
        f"error[E310]: {tmp_path} is no checkpoint: it has no adapter_config.json\n"
        "  = help: give the folder that `save_pretrained` of peft wrote"
    )
    checkpoint(tmp_path / "german", LORA)
    assert refused(opened, tmp_path) == (
        f"error[E310]: {tmp_path} holds no checkpoint itself, but 1 inside\n"
        f"  = help: peftc import {tmp_path / 'german'} -o DIR"
    )


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.bin").write_bytes(b"never read")
    text = refused(opened, tmp_path)
    assert text.startswith(
        f"error[E311]: {tmp_path / 'adapter_model.bin'} is a pickle, which can run code"
    )
    assert "both save safetensors" in text


def test_damaged_files(tmp_path):
    folder = checkpoint(tmp_path / "c", LORA)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    program = zoo.captured("bert")
    assert refused(peftc.import_checkpoint, folder, program).startswith(
        f"error[E303]: {weights} cannot be read: "
    )
    weights.unlink()
    assert refused(opened, folder).startswith(
        f"error[E303]: {folder} has adapter_config.json and no tensors"
    )
    (folder / "adapter_config.json").write_text("{")
    assert refused(opened, folder).startswith(
        f"error[E303]: {folder / 'adapter_config.json'} cannot be read: "
    )


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (
            {**tensors(), "base_model.model.head.weight": torch.ones(2, 3)},
            "E313]: {} changes `head.weight`, which BertModel does not have or does not use",
        ),
        (
            {k: v for k, v in tensors().items() if k != QUERY.format(1) + "lora_A.weight"},
            "E313]: encoder.layer.1.attention.self.query has B where A, B belong",
        ),
        (tensors(width=25), "E313]: encoder.layer.0.attention.self.query, A is [3, 25] in the "),
        (
            {k.replace("model.encoder", "model.bert.encoder"): v for k, v in tensors().items()},
            "E313]: {} changes `bert.encoder.layer.0.attention.self.query`, which BertModel does "
            "not have or does not use\n  = help: BertModel calls it "
            "encoder.layer.0.attention.self.query",
        ),
        ({}, "E313]: {}/adapter_model.safetensors holds no tensor of the method"),
        (
            {k: v.double() / 3 for k, v in tensors().items()},
            "E313]: encoder.layer.0.attention.self.query, A is float64 in the checkpoint and would "
            "lose digits in float32",
        ),
        (
            {**tensors(), "base_model.model.encoder.layer.0.output.dense.weight": torch.ones(3, 4)},
            "E313]: base_model.model.encoder.layer.0.output.dense.weight is [3, 4], the model has",
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(values, first, tmp_path):
    folder = checkpoint(tmp_path / "c", LORA, values)
    text = refused(peftc.import_checkpoint, folder, zoo.captured("bert"))
    assert text.startswith("error[" + first.format(folder))


def test_a_rank_that_the_tensors_do_not_have(tmp_path):
    folder = checkpoint(tmp_path / "c", {**LORA, "r": 4})
    assert refused(peftc.import_checkpoint, folder, zoo.captured("bert")) == (
        "error[E313]: adapter_config.json says rank 4 for encoder.layer.0.attention.self.query, "
        "its tensors have 3"
    )
