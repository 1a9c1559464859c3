"""Folding: the same outputs from a cheaper graph, and weights of its own where they change."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import EXPORT
from torch.utils._python_dispatch import TorchDispatchMode

import peftc
from peftc.methods.low_rank import fold as fold_low_rank
from peftc.rewrite.pipeline import fold

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


class Largest(TorchDispatchMode):
    """Notes the largest product of matrices."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.size = max(self.size, made.numel())
        return made


@pytest.mark.parametrize("spec", ["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES, ids="/".join)
def test_a_product_is_made_some_rows_at_a_time(spec, family, monkeypatch):
    """gpt2's updates are of a part of a fused and transposed weight."""
    monkeypatch.setattr(fold_low_rank, "ROWS", 7)
    graph = peftc.apply(spec, zoo.captured(*family))
    reference.randomise(graph)
    with Largest() as products:
        folded, _ = fold(graph)
    assert [n for n, _ in folded.peft_parameters()] == []
    assert 0 < products.size <= 7 * 24
    inputs = zoo.inputs(zoo.model(*family), 4, 9)
    with torch.no_grad():
        got, want = folded(**inputs).logits, graph(**inputs).logits
    torch.testing.assert_close(got, want, **EXPORT[got.dtype])


@pytest.mark.parametrize("spec", ["lora", "dora"])
def test_pieces_of_more_precision_than_the_weight_are_rounded_once(spec):
    graph = peftc.apply(spec, zoo.build("bert", "base", layers=1).half())
    reference.randomise(graph)
    for _, piece in reference.placed(graph, "qv"):
        piece.float()
    folded, _ = fold(graph)
    for role, module in (("attn_q", "query"), ("attn_v", "value")):
        p = {n.rpartition(".")[2]: v for n, v in graph.peft_parameters() if role in n}
        name = f"encoder.layer.0.attention.self.{module}.weight"
        wanted = graph.get_parameter(name).float() + 2.0 * (p["B"] @ p["A"])
        if spec == "dora":
            wanted = (p["m"] / wanted.norm(dim=1))[:, None] * wanted
        assert torch.equal(folded.get_parameter(name), wanted.half())


@pytest.mark.parametrize("family", FAMILIES, ids="/".join)
def test_two_decomposed_updates_of_the_same_rows_stay(family):
    """Each has a norm of the frozen weight, which would no longer be there for the other."""
    insert = [
        {"id": f"d{k}", "at": at, "delta": {"dora": {"rank": 3}}}
        for k, at in enumerate(("attn.q", "attn.q", "attn.v"))
    ]
    graph = peftc.apply({"peftc": 1, "name": "n", "insert": insert}, zoo.captured(*family))
    reference.randomise(graph)
    folded, _ = fold(graph)
    assert {n.split(".")[1] for n, _ in folded.peft_parameters()} == {"d0", "d1"}
    inputs = zoo.inputs(zoo.model(*family), 4, 9)
    with torch.no_grad():
        got, want = folded(**inputs).logits, graph(**inputs).logits
    torch.testing.assert_close(got, want, **EXPORT[got.dtype])
