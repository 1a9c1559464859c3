"""Cells of the parity matrix that no other test has: a few for each model; docs/parity.md has all.

A cell compares a graph with PEFT on the same weights, random and none zero, at two padded shapes;
Houlsby's adapters with their formula in hooks, deep prompts with the model's own cache.
"""

from __future__ import annotations

import parity
import pytest
import torch
from tolerances import PARITY

CELLS = [
    ("lora patterns", "roberta", "SEQ_CLS", "PEFT"),
    ("p-tuning v2", "roberta", "SEQ_CLS", "cache"),
    ("prompt", "roberta", "SEQ_CLS", "PEFT"),
    ("lora bias", "distilbert", "TOKEN_CLS", "PEFT"),
    ("houlsby", "distilbert", "TOKEN_CLS", "hooks"),
    ("p-tuning v2", "distilbert", "TOKEN_CLS", "attention function"),
    ("p-tuning v2", "bert", "QUESTION_ANS", "cache"),
    ("dora", "qwen2", "CAUSAL_LM", "PEFT"),
    ("prefix", "qwen2", "CAUSAL_LM", "PEFT"),
    ("lora embedding", "mistral", "CAUSAL_LM", "PEFT"),
    ("p-tuning v2", "mistral", "CAUSAL_LM", "cache"),
    ("lora", "distilbert", "SEQ_CLS", "PEFT"),  # within 1e-5 in float64 only
    ("lora patterns", "bart", "SEQ_2_SEQ_LM", "PEFT"),
    ("lora embedding", "bart", "SEQ_2_SEQ_LM", "PEFT"),  # whose module scales its rows
    ("prompt", "llama", "SEQ_CLS", "PEFT"),  # which sees no padding among embeddings
    ("prefix", "bart", "SEQ_2_SEQ_LM", "PEFT"),
    ("houlsby", "bart", "SEQ_2_SEQ_LM", "hooks"),
    ("lora patterns", "bart", "SEQ_CLS", "PEFT"),
    ("p-tuning v2", "bart", "SEQ_CLS", "cache"),
    ("ia3", "t5", "SEQ_CLS", "PEFT"),
    ("prompt", "t5", "QUESTION_ANS", "PEFT"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "kind", "task", "against"), CELLS)
def test_a_graph_computes_what_its_reference_computes(method, kind, task, against):
    row = parity.cell(method, kind, task)
    assert row.get("reference") == against, row
    assert row["effect"] > 1e-2
    rounding = row.get("float64", 1.0) <= PARITY[torch.float64]["atol"]
    assert row["difference"] <= PARITY[torch.float32]["atol"] or rounding, row


def test_the_table_has_every_model_task_and_method():
    """What has no number says why: PEFT's own words, or that there is no reference."""
    rows = parity.read()
    wanted = {
        (k, t, m)
        for t, kinds in parity.peft_cases.OF.items()
        for k in kinds
        for m in parity.METHODS
    }
    assert rows.keys() == wanted
    assert not [k for k, r in rows.items() if "error" in r]
    for key, row in rows.items():
        if "difference" in row:
            rounding = row.get("float64", 1.0) <= parity.TOLERANCE64
            assert row["difference"] <= parity.TOLERANCE or rounding, key
            assert row["effect"] > 1e-3, key
        else:
            assert row["absent"], key
