"""Checkpoints of PEFT: imported they compute what PEFT computes; written back bit by bit."""

from __future__ import annotations

import json

import peft_cases
import pytest
import torch
import zoo
from safetensors.torch import load_file
from tolerances import PARITY

import peftc
from peftc.rewrite.applied import APPLIED

TASKS = {
    "SEQ_CLS": "sequence-classification",
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq-lm",
}
# Every method and every kind of model; the whole matrix is benchmarks/parity.py.
CASES = [
    ("lora", "t5", "SEQ_2_SEQ_LM"),
    ("lora patterns", "bert", "SEQ_CLS"),
    ("lora bias", "bert", "SEQ_CLS"),
    ("lora embedding", "llama", "CAUSAL_LM"),
    ("dora", "gpt2", "CAUSAL_LM"),
    ("ia3", "bert", "SEQ_CLS"),
    ("ia3", "gpt2", "CAUSAL_LM"),
    ("prefix", "llama", "CAUSAL_LM"),
    ("prefix", "t5", "SEQ_2_SEQ_LM"),
    ("prompt", "bert", "SEQ_CLS"),
    ("prompt", "llama", "CAUSAL_LM"),
    ("p-tuning", "t5", "SEQ_2_SEQ_LM"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "kind", "task"), CASES)
def test_a_checkpoint_means_what_it_means_to_peft(method, kind, task, tmp_path):
    plain = zoo.model(kind, TASKS[task])
    model = peft_cases.adapted(method, kind, task, zoo.build(kind, TASKS[task]))
    folder = peft_cases.saved(model, tmp_path / "peft")
    program = zoo.captured(kind, TASKS[task])
    graph = peftc.import_checkpoint(folder, program)
    difference, effect = peft_cases.compare(graph, model, plain)
    assert difference <= PARITY[torch.float32]["atol"]
    assert effect > 1e-2

    peftc.save(graph, tmp_path / "artifact")
    graph = peftc.load(tmp_path / "artifact", program)
    peftc.export(graph, "peft", tmp_path / "back")
    before, after = (
        load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert value.equal(after[name]), name
    configs = (
        json.loads((f / "adapter_config.json").read_text()) for f in (folder, tmp_path / "back")
    )
    assert next(configs) == next(configs)


@pytest.mark.filterwarnings("ignore")
def test_the_spec_is_one_that_a_person_reads(tmp_path):
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    model = peft.get_peft_model(zoo.build("bert", "sequence-classification"), config)
    folder = peft_cases.saved(model, tmp_path)
    graph = peftc.import_checkpoint(folder, zoo.captured("bert", "sequence-classification"))
    spec = graph.meta[APPLIED].spec
    from peftc.interop.describe import equals_preset

    assert equals_preset(spec) == "`lora` with rank=8, alpha=16"
    assert spec.to_dict()["insert"][0]["at"] == ["attn.q", "attn.v"]
    assert spec.to_dict()["insert"][0]["compose"] == {"add": {"scale": 2}}


@pytest.mark.filterwarnings("ignore")
def test_layers_and_modules_without_a_role_are_named(tmp_path):
    import peft

    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "o_proj"],
        layers_to_transform=[1, 2],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(zoo.build("llama", "causal-lm"), config)
    graph = peftc.import_checkpoint(
        peft_cases.saved(model, tmp_path), zoo.captured("llama", "causal-lm")
    )
    insert = graph.meta[APPLIED].spec.to_dict()["insert"]
    assert [(i["at"], i["layers"]) for i in insert] == [
        (["attn.q"], "1-2"),
        (
            [{"module": f"model.layers.{k}.self_attn.o_proj", "end": "output"} for k in (1, 2)],
            "all",
        ),
    ]
