"""Constants go into the pieces' own weights: no scale, gate or head repetition is left to run."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import EXPORT

import peftc
from peftc.methods.pipe.module import Pipe, Scale
from peftc.methods.prefix.module import Prefix
from peftc.passes.base import DEFERRED, pieces
from peftc.pieces.gate import Gate
from peftc.rewrite.pipeline import fold


def adapted(delta, compose, form="sequential", family=("bert", "base"), at="attn.v"):
    """A graph with one insertion at the second layer, all of its numbers random."""
    insertion = {"id": "a", "at": at, "layers": [1], "form": form, "delta": delta}
    spec = {"peftc": 1, "name": "t", "insert": [{**insertion, "compose": compose}]}
    graph = peftc.apply(spec, zoo.captured(*family))
    reference.randomise(graph)
    return graph


def folded(graph, family=("bert", "base"), **options):
    """The folded graph, its outputs compared, and what each pass changed."""
    result, reports = fold(graph, **options)
    for shape in ((2, 9), (3, 6)):
        given = zoo.inputs(zoo.model(*family), *shape)
        with torch.no_grad():
            got = reference.main_output(result(**given))
            want = reference.main_output(graph(**given))
        torch.testing.assert_close(got, want, **EXPORT[got.dtype])
    return result, {r.name: r.difference for r in reports}


def test_the_scale_of_an_update_goes_into_its_last_matrix():
    delta, compose = {"low_rank": {"rank": 3}}, {"add": {"scale": 2.5}}
    graph = adapted(delta, compose, form="parallel")
    result, changes = folded(graph, merge=False)
    path = "f32[batch, sequence, 24]  @encoder.layer.1.attention.self.value"
    assert changes["FoldScale"] == (
        f"-%add_tensor = aten.add.Tensor(%linear_8, %peft_a_layer1_attn_v, alpha=2.5) : {path}",
        f"+%add_tensor = aten.add.Tensor(%linear_8, %peft_a_layer1_attn_v) : {path}",
    )
    name = "peft.a.layer1_attn_v"
    assert torch.equal(result.get_parameter(f"{name}.B"), 2.5 * graph.get_parameter(f"{name}.B"))
    assert torch.equal(result.get_parameter(f"{name}.A"), graph.get_parameter(f"{name}.A"))


def test_none_leaves_every_tensor_as_it_is():
    graph = adapted({"low_rank": {"rank": 3}}, {"add": {"scale": 2.5}}, form="parallel")
    result, _ = fold(graph, merge=False, constants=False)
    before, after = dict(graph.peft_parameters()), dict(result.peft_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("per", ["scalar", "channel"])
def test_a_gate_is_a_product_and_a_sum(per):
    graph = adapted({"bottleneck": {"dim": 5}}, {"gate": {"init": 0.3, "per": per}})
    result, changes = folded(graph, merge=False)
    where = "@encoder.layer.1.attention.self.value"
    assert changes["FoldScale"][0].startswith("-%peft_a_layer1_attn_v_gate = peft.a.layer1_attn_v")
    assert changes["FoldScale"][2:5] == (
        f"+%peft_a_layer1_attn_v_gate_keep = peft.a.layer1_attn_v_gate_keep() : f32[24]  {where}",
        "+%mul_tensor = aten.mul.Tensor(%linear_8, %peft_a_layer1_attn_v_gate_keep) : "
        f"f32[batch, sequence, 24]  {where}",
        "+%add_tensor = aten.add.Tensor(%mul_tensor, %peft_a_layer1_attn_v) : "
        f"f32[batch, sequence, 24]  {where}",
    )
    assert not pieces(result, Gate)


def test_what_a_gate_keeps_of_a_linear_is_merged_into_it():
    """(1 - g) W x + piece(x), of a piece that does not read h itself."""
    graph = adapted({"bottleneck": {"dim": 5}}, {"gate": {"init": 0.3}}, form="parallel")
    result, _ = folded(graph)
    names = [n for n, _ in result.peft_parameters()]
    assert names
    assert not any("gate" in n for n in names)


@pytest.mark.parametrize("norm", ["none", "after"])
def test_the_scale_of_an_adapter_goes_into_its_last_layer(norm):
    delta = {"bottleneck": {"dim": 5, "norm": norm}}
    graph = adapted(delta, {"add": {"scale": 4.0}}, at="ffn.out", family=("gpt2", "causal-lm"))
    result, changes = folded(graph, ("gpt2", "causal-lm"))
    assert len(changes["FoldScale"]) == 2
    assert not any("alpha" in t for t in changes["FoldScale"] if t.startswith("+"))
    assert len(list(result.peft_parameters())) == len(list(graph.peft_parameters()))


def test_the_scales_of_a_pipe_go_into_the_layers_before_them():
    steps = [
        {"linear": {"out": 7}},
        {"scale": 3.0},
        {"act": "relu"},
        {"scale": 0.7},  # behind a nonlinearity: stays
        {"linear": {"out": "same", "rank": 2}},
        {"scale": {"init": 0.5, "per": "channel"}},
    ]
    result, _ = folded(adapted({"pipe": steps}, {"add": {"scale": 2.0}}))
    (_, pipe), *_ = pieces(result, Pipe)
    assert [type(s).__name__ for s in pipe.steps] == ["Linear", "Activation", "Scale", "Sequential"]
    assert sum(isinstance(m, Scale) for m in pipe.modules()) == 1


def test_a_prefix_is_repeated_over_the_heads_once():
    family = ("llama", "causal-lm")
    graph = peftc.apply("prefix", zoo.captured(*family), set={"tokens": 5})
    reference.randomise(graph)
    result, _ = folded(graph, family)
    for _, prefix in pieces(result, Prefix):
        assert prefix.key.shape == (1, 4, 5, 10)  # kv heads are two
        assert torch.equal(prefix.key[0, 0], prefix.key[0, 1])


def test_deferred_changes_wait_and_give_the_same_weights():
    graph = peftc.apply("ia3", zoo.captured("bert", "base"))
    reference.randomise(graph)
    at_once, _ = fold(graph)
    waiting, _ = fold(graph, deferred=True)
    changes = waiting.meta[DEFERRED]
    assert not list(waiting.peft_parameters())
    for name, weight in waiting.named_parameters():
        assert weight is graph.get_parameter(name)
        value = weight.detach().clone()
        for change in changes.pop(name, ()):
            value = change(value)
        assert torch.equal(value, at_once.get_parameter(name))
    assert not changes
