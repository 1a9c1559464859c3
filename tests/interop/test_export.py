"""Graphs as checkpoints of PEFT: it loads them with the same outputs, or they are refused."""

from __future__ import annotations

import copy
import json

import peft_cases
import pytest
import reference
import torch
import zoo
from safetensors.torch import load_file
from tolerances import PARITY

import peftc
from peftc.ground.diagnostics import PeftcError

pytestmark = pytest.mark.filterwarnings("ignore")
LORA = {"low_rank": {"rank": 3}}
FUSED = {
    "peftc": 1,
    "name": "fused",
    "insert": [
        {"id": "q", "at": "attn.q", "delta": LORA, "compose": {"add": {"scale": 2}}},
        {"id": "v", "at": "attn.v", "delta": {"low_rank": {"rank": 2}}, "compose": "add"},
        {"id": "up", "at": "ffn.up", "layers": [1], "delta": LORA, "compose": "add"},
    ],
}


def back(graph, plain, folder):
    """The PEFT model of an exported graph, and the largest difference from it."""
    import peft

    peftc.export(graph, "peft", folder)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(plain), folder).eval()
    return peft_cases.compare(graph, model, plain)


@pytest.mark.parametrize(
    ("spec", "kind", "task"),
    [
        (FUSED, "gpt2", "causal-lm"),
        ("ia3", "gpt2", "causal-lm"),
        ("dora", "bert", "sequence-classification"),
        ("bitfit_lora", "bert", "sequence-classification"),
        ("prefix", "llama", "causal-lm"),
    ],
)
def test_peft_loads_what_was_written(spec, kind, task, tmp_path):
    if spec == "bitfit_lora":
        spec = {
            "peftc": 1,
            "name": "both",
            "insert": [{"id": "q", "at": "attn.q", "delta": LORA, "compose": "add"}],
            "unfreeze": [{"role": "bias"}, {"role": "norm"}, {"role": "head"}],
        }
    graph = peftc.apply(spec, zoo.captured(kind, task))
    reference.randomise(graph)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in peftc.trainable(graph).items():
        if not name.startswith("peft."):
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    difference, effect = back(graph, zoo.model(kind, task), tmp_path / "peft")
    assert difference <= PARITY[torch.float32]["atol"]
    assert effect > 1e-2


def test_a_fused_projection_is_one_update_of_the_sum_of_ranks(tmp_path):
    graph = peftc.apply(FUSED, zoo.captured("gpt2", "causal-lm"))
    peftc.export(graph, "peft", tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == 5
    assert config["rank_pattern"] == {"^transformer.h.1.mlp.c_fc": 3}
    assert config["fan_in_fan_out"]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("houlsby", "it has no form of: Bottleneck"),
        (
            "combined",
            "it has no form of: Bottleneck",
        ),
        (
            {
                "peftc": 1,
                "name": "part",
                "insert": [
                    {"id": "p", "at": "attn.kv", "layers": [0], "delta": {"prefix": {"tokens": 2}}}
                ],
            },
            "a prefix stands at every layer of attention and nowhere else",
        ),
        ("prompt", "poolers and heads read the prompt's first row as the first token"),
        ("bitfit", "nothing is inserted"),
    ],
)
def test_what_peft_has_no_form_of_is_refused_and_nothing_written(spec, why, tmp_path):
    graph = peftc.apply(spec, zoo.captured("bert", "sequence-classification"))
    with pytest.raises(PeftcError) as refusal:
        peftc.export(graph, "peft", tmp_path / "peft")
    assert str(refusal.value).startswith(f"error[E408]: PEFT cannot express this graph: {why}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "task", "delta", "stack", "why"),
    [
        ("t5", "SEQ_CLS", "prompt", "encoder",
         "T5ForSequenceClassification takes no embeddings in the place of ids"),
        ("bart", "QUESTION_ANS", "prompt", "decoder",
         "one prompt stands in front of the (first) embedding"),
        ("bart", "SEQ_CLS", "prefix", "decoder",
         "BartForSequenceClassification takes no cache, which a prefix would be in"),
    ],
)  # fmt: skip
def test_what_peft_cannot_give_a_classifier_with_two_stacks(
    kind, task, delta, stack, why, tmp_path
):
    at = {"prompt": "embed.out", "prefix": "attn.kv"}[delta]
    entry = {"id": "p", "at": at, "stack": stack, "delta": {delta: {"tokens": 2}}}
    spec = {"peftc": 1, "name": "p", "insert": [entry]}
    graph = peftc.apply(spec, peft_cases.captured(kind, task))
    with pytest.raises(PeftcError) as refusal:
        peftc.export(graph, "peft", tmp_path / "peft")
    assert str(refusal.value).startswith(f"error[E408]: PEFT cannot express this graph: {why}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "task", "method"), [
    ("t5", "SEQ_CLS", "lora patterns"), ("bart", "QUESTION_ANS", "prompt"),
])  # fmt: skip
def test_checkpoints_of_classifiers_with_two_stacks_come_back_bit_for_bit(
    kind, task, method, tmp_path
):
    there = peft_cases.saved(peft_cases.adapted(method, kind, task), tmp_path / "there")
    graph = peftc.import_checkpoint(there, peft_cases.captured(kind, task))
    peftc.export(graph, "peft", tmp_path / "back")
    was, now = (load_file(f / "adapter_model.safetensors") for f in (there, tmp_path / "back"))
    assert was.keys() == now.keys()
    assert all(torch.equal(was[n], now[n]) for n in was)
