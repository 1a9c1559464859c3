"""Trainable-parameter counts equal to the reference libraries', on shapes without weights."""

from __future__ import annotations

import functools
import json

import pytest
import spec_counts
from transformers import BertConfig, LlamaConfig

import peftc
from peftc.dataflow import find_sites

BERT_BASE = {
    "houlsby": 1_789_056,
    "pfeiffer": 894_528,
    "parallel": 7_091_712,
    "mam": 22_493_984,
    "prefix": 9_872_384,
    "prompt": 15_360,
    "lora": 294_912,
    "ia3": 55_296,
    "ptuning2": 589_824,
    "dora": 313_344,
}


@functools.cache
def sites(family: str):
    configs = {
        "bert": BertConfig(),
        "llama": LlamaConfig(
            vocab_size=32_000,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=2,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
    }
    return peftc.sites(configs[family])


@pytest.mark.parametrize(("spec", "count"), BERT_BASE.items())
def test_inserted_parameters_on_bert_base(spec, count):
    from peftc.planning.make import make_plan

    assert make_plan(peftc.load_spec(spec), sites("bert")).inserted == count


def test_the_counts_that_specs_ls_shows_are_those_of_plans():
    assert spec_counts.counts(sites("bert")) == json.loads(
        (spec_counts.HOME / "bert_base.json").read_text()
    )


def test_inserted_parameters_on_a_llama_shape_with_fewer_key_value_heads():
    from peftc.planning.make import make_plan

    # Of 16 layers; two are captured, and all are alike.
    assert 16 // 2 * make_plan(peftc.load_spec("lora"), sites("llama")).inserted == 851_968


def test_planning_reads_no_weights():
    program = sites("llama").program
    assert {p.device.type for p in program.parameters()} == {"meta"}
    assert find_sites(program).layers == {"": 2}
