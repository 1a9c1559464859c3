"""What of the model each shipped spec trains beside its pieces: the head, in two papers more."""

from __future__ import annotations

import peft_cases
import pytest
import zoo

import peftc
from peftc.spec import catalogue

# The paper's own addition to the head. Source: Houlsby et al. 2019, section 2; BitFit.
BESIDE = {"houlsby": "LayerNorm", "bitfit": ".bias"}
ON_BERT = sorted(set(catalogue.names()) - {"prefix_seq2seq", "ptuning2_multitask", "combined"})


def beside(graph):
    return {n for n in peftc.trainable(graph) if not n.startswith("peft.")}


@pytest.mark.parametrize("name", ON_BERT)
def test_a_shipped_spec_trains_the_head_and_what_its_paper_trains(name):
    model = zoo.model("bert", "sequence-classification")
    graph = peftc.apply(name, zoo.captured("bert", "sequence-classification"))
    names = [n for n, _ in model.named_parameters()]
    heads = {n for n in names if n.startswith("classifier.")}
    extra = {n for n in names if name in BESIDE and BESIDE[name] in n}
    assert len(heads) == 2
    assert len(extra) == {"houlsby": 14, "bitfit": 27}.get(name, 0)
    assert beside(graph) == heads | extra


def test_prefixes_of_two_stacks_come_with_the_head():
    settings = {"encoder": 2, "decoder": 2, "cross": 2, "hidden": 7}
    graph = peftc.apply("prefix_seq2seq", peft_cases.captured("bart", "SEQ_CLS"), set=settings)
    assert beside(graph) == {
        f"classification_head.{n}.{t}" for n in ("dense", "out_proj") for t in ("weight", "bias")
    }
