"""Folding: the same outputs from a cheaper graph, and weights of its own where they change."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import EXPORT

import peftc
from peftc.pipeline import fold

FAMILIES = [("bert", "sequence-classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]


@pytest.mark.parametrize("spec", ["lora", "ia3"])
@pytest.mark.parametrize("family", FAMILIES, ids="/".join)
def test_what_can_be_merged_is_merged_and_the_outputs_stay(family, spec):
    model = zoo.model(*family)
    graph = peftc.apply(spec, zoo.captured(*family))
    reference.randomise(graph)
    before = {n: p.clone() for n, p in graph.state_dict().items()}
    folded, _ = fold(graph)
    assert [n for n, _ in folded.peft_parameters()] == []
    assert [n for n in folded.graph.nodes if n.op == "call_module"] == []
    plain = zoo.captured(*family)
    operations = [n.target for n in folded.graph.nodes if n.op == "call_function"]
    assert operations == [n.target for n in plain.graph.nodes if n.op == "call_function"]
    inputs = zoo.inputs(model, 4, 9)
    with torch.no_grad():
        got, want = folded(**inputs).logits, graph(**inputs).logits
    torch.testing.assert_close(got, want, **EXPORT[got.dtype])
    assert all(torch.equal(before[n], p) for n, p in graph.state_dict().items())


def test_a_shared_weight_is_not_merged_into():
    """GPT-2's fused projection serves q and v of one layer only; a tied head serves two places."""
    spec = {
        "peftc": 1,
        "name": "head",
        "insert": [
            {
                "id": "h",
                "at": {"module": "lm_head"},
                "delta": {"low_rank": {"rank": 3}},
                "compose": "add",
            }
        ],
    }
    graph = peftc.apply(spec, zoo.captured("gpt2", "causal-lm"))
    reference.randomise(graph)
    folded, _ = fold(graph)
    assert len(list(folded.peft_parameters())) == 2
    inputs = zoo.inputs(zoo.model("gpt2", "causal-lm"), 2, 7)
    with torch.no_grad():
        assert torch.equal(folded(**inputs).logits, graph(**inputs).logits)
