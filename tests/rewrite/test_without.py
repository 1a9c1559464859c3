"""Pieces out of layers after training: equal to zeroed pieces there, and saved as such."""

from __future__ import annotations

import json

import pytest
import reference
import torch
import zoo
from tolerances import PARITY

import peftc
from peftc.cli.main import run
from peftc.ground.diagnostics import PeftcError

BERT, T5 = ("bert", "sequence-classification"), ("t5", "seq2seq-lm")


def trained(spec, family, **options):
    graph = peftc.apply(spec, zoo.captured(*family), **options)
    reference.randomise(graph)
    for parameter in peftc.trainable(graph).values():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return graph


def outputs(graph, family, batch=4, length=9):
    with torch.no_grad():
        return graph(**zoo.inputs(zoo.model(*family), batch, length)).logits


@pytest.mark.parametrize(
    ("layers", "insertion"), [("0-1", None), ([0, 2], "after_ffn"), ("all", None)]
)
def test_outputs_are_those_of_zeroed_adapters(layers, insertion):
    graph = trained("houlsby", BERT)
    before = outputs(graph, BERT)
    made = peftc.without(graph, layers, insertion)
    assert torch.equal(outputs(graph, BERT), before), "the graph given is unchanged"
    gone = {n for n, _ in graph.peft_parameters()} - {n for n, _ in made.peft_parameters()}
    chosen = {"0-1": (0, 1), "all": (0, 1, 2)}.get(str(layers), (0, 2))
    ids = [insertion] if insertion else ["after_attn", "after_ffn"]
    assert {n.rsplit(".", 2)[0] for n in gone} == {
        f"peft.{i}.layer{k}_{'attn' if i == 'after_attn' else 'ffn'}_out"
        for i in ids
        for k in chosen
    }
    for name in gone:
        if ".up." in name:
            graph.get_parameter(name).data.zero_()
    torch.testing.assert_close(outputs(made, BERT), outputs(graph, BERT), **PARITY[torch.float32])
    assert (outputs(made, BERT) - before).abs().max() > 1e-3


def test_norms_and_head_stay_as_they_were_trained():
    graph = trained("houlsby", BERT)
    made = peftc.without(graph, "all")
    kept = peftc.trainable(made)
    assert kept
    assert all(torch.equal(p, graph.get_parameter(n)) for n, p in kept.items())
    assert {n for n in kept if "LayerNorm" in n}
    assert {n for n in kept if n.startswith("classifier.")}


def test_a_prefix_with_its_network_loses_the_rows_of_its_layers():
    spec = {"peftc": 1, "name": "p", "insert": [{
        "id": "pre", "at": ["attn.kv", "cross.kv"],
        "delta": {"prefix": {"tokens": 5, "reparam": {"hidden": 7}}}}]}  # fmt: skip
    graph = trained(spec, T5)
    made = peftc.without(graph, "1")
    whole, less = (g.get_submodule("peft.pre.reparam") for g in (graph, made))
    names = [s["name"] for s in graph.meta["peftc.applied"].plan["insertions"][0]["sites"]]
    assert len(names) == 7
    kept = [k for k, n in enumerate(names) if "layer1" not in n]
    with torch.no_grad():
        given, left = whole(), less()
    assert len(left) == 2 * len(kept) == 8
    for j, k in enumerate(kept):
        torch.testing.assert_close(left[2 * j : 2 * j + 2], given[2 * k : 2 * k + 2])
    again = peftc.without(made, "0", "pre")  # layers add up
    assert again.meta["peftc.applied"].spec.insert[0].without.written == "1, 0"
    assert outputs(again, T5).isfinite().all()


def test_a_spec_can_leave_layers_out_from_the_start():
    spec = {"peftc": 1, "name": "w", "insert": [
        {"id": "a", "at": "ffn.out", "layers": "all", "without": "first 2, 4",
         "delta": {"bottleneck": {"dim": {"default": 5, "last 1": 3}}}}]}  # fmt: skip
    with pytest.raises(PeftcError, match=r"E107.*`without: 4` of a stack of 3 layers"):
        peftc.plan(spec, zoo.captured("bert"))
    spec["insert"][0]["without"] = "first 2"
    graph = peftc.apply(spec, zoo.captured("bert"))
    assert {n: tuple(p.shape) for n, p in graph.peft_parameters() if n.endswith("down.weight")} == {
        "peft.a.layer2_ffn_out.down.weight": (3, 24)
    }


@pytest.mark.parametrize(
    ("spec", "args", "text"),
    [
        ("houlsby", ("7",), "error[E107]: `without: 7` of a stack of 3 layers, 0 to 2"),
        ("houlsby", ("some",), "error[E107]: without some: layers are all, odd, even"),
        ("houlsby", ("0", "after_fn"), "error[E004]: `after_fn` is no insertion of houlsby\n"
         "  = help: did you mean `after_ffn`?\n  = help: insertions: after_attn, after_ffn"),
        ("prompt", ("0",), "error[E113]: nothing of prompt stands in layers, so none can be left"),
        (None, ("1",), "error[E113]: nothing of one stands in layers 1\n"
         "  = help: a stands at: layer0_ffn_out"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(spec, args, text):
    entry = {"id": "a", "at": "ffn.out", "layers": 0, "delta": {"bottleneck": {"dim": 5}}}
    one = {"peftc": 1, "name": "one", "insert": [entry]}
    graph = peftc.apply(spec or one, zoo.captured(*BERT))
    with pytest.raises(PeftcError) as caught:
        peftc.without(graph, *args)
    assert text in str(caught.value)


def test_the_command_line_writes_what_is_left_and_exports_it(
    model_folder, tmp_path, capsys, captures_once
):
    def peftc_(*args):
        code = run([str(a) for a in args])
        return code, *capsys.readouterr()

    full, less = tmp_path / "full", tmp_path / "less"
    assert peftc_("apply", "houlsby", model_folder, "-o", full)[0] == 0
    code, out, err = peftc_("apply", full, "--without", "0-1", "-o", less)
    assert (code, " after_attn      1 sites left\n" in out) == (0, True), err
    made = peftc.load(less)
    assert {n.split(".")[2] for n, _ in made.peft_parameters()} == {
        "layer2_attn_out",
        "layer2_ffn_out",
    }
    code, out, err = peftc_(
        "export", full, "--to", "onnx", "--without", "0-1", "-o", tmp_path / "x", "--json"
    )
    assert code == 0, err
    assert len(json.loads(out)["export"]["peft"]) == 8
    assert peftc_("verify", less, tmp_path / "x")[0] == 0
    fresh = peftc.load_spec("houlsby").without("0-1")
    assert (less / "spec.yaml").read_text() == fresh.to_yaml()
    for args, text in [
        ((full, "-o", tmp_path / "no"), "is applied already"),
        ((full, "--without", "0", "--set", "dim=3", "-o", tmp_path / "no"), "has decided --set"),
        (("houlsby", model_folder, "--insertion", "a", "-o", tmp_path / "no"), "--insertion says"),
    ]:
        code, _, err = peftc_("apply", *args)
        assert (code, text in err) == (2, True), err
    assert not (tmp_path / "no").exists()
