"""What `verify` feeds, measures and compares, and corruptions that it has to see."""

from __future__ import annotations

import importlib
import shutil

import corruptions
import linking
import pytest
import reference
import torch
import zoo
from corruptions import constant, heads, off, operation, row, settle, tensor, times

import peftc
from peftc.backends.cases import cases_for, rows_read
from peftc.backends.inside import Inside
from peftc.backends.noise import Together
from peftc.backends.same_weights import ABSENT, compared
from peftc.capture import capture
from peftc.capture.stored import Stored

CASE = ("bert", "base", "lora", False)


@pytest.mark.parametrize("family", [("bert", "base"), ("gpt2", "causal-lm"), ("t5", "seq2seq-lm")])
def test_every_id_type_and_side_of_padding_is_in_some_case(family):
    program = zoo.captured(*family, layers=1)
    config = program.signature.config
    found, ids, vocabulary = cases_for(program)
    assert ids == vocabulary == config.vocab_size
    seen, sides = set(), set()
    for case in found:
        mask = case.values["attention_mask"].bool()
        seen |= set(case.values["input_ids"][mask].tolist())
        if "decoder_input_ids" in case.values:
            decoder = case.values["decoder_attention_mask"].bool()
            seen |= set(case.values["decoder_input_ids"][decoder].tolist())
        assert mask[0].all()  # a row without padding
        assert mask.any(1).all()
        assert (case.values["input_ids"][~mask] == (config.pad_token_id or 0)).all()
        sides |= {"left" for r in mask if not r[0]} | {"right" for r in mask if not r[-1]}
    assert seen == set(range(config.vocab_size))
    assert sides == {"left", "right"}
    lengths = {c.length for c in found}
    assert max(lengths) == (62 if family[0] != "t5" else 128)
    assert {2, 7, 12, 13, 33} <= lengths
    if family[0] == "bert":
        types = torch.cat([c.values["token_type_ids"].reshape(-1) for c in found])
        assert set(types.tolist()) == {0, 1}


def test_a_large_vocabulary_is_run_as_far_as_it_costs_little_and_wholly_when_asked(monkeypatch):
    program = zoo.captured("bert", "base", layers=1)
    monkeypatch.setattr("peftc.backends.cases.vocabulary_of", lambda config: 90_000)
    monkeypatch.setattr("peftc.backends.cases.rows_read", lambda graph, name: None)
    monkeypatch.setattr("peftc.backends.cases.COST", 1e8)
    _, few, vocabulary = cases_for(program)
    assert vocabulary == 90_000
    assert 3_000 < few < 30_000
    assert cases_for(program, deep=True)[1] == 90_000


def test_the_rows_of_the_table_that_an_input_chooses_from_are_found():
    program = zoo.captured("bert", "base", layers=1)
    assert rows_read(program, "input_ids") == 99
    assert rows_read(program, "token_type_ids") == 2
    assert rows_read(program, "attention_mask") is None


def test_tasks_and_ends_of_texts_are_in_the_cases():
    import peft_cases

    graph = peftc.apply(corruptions.TASKS, zoo.captured("bert", "base", layers=1))
    rows = torch.cat([c.values["task_ids"] for c in cases_for(graph)[0]])
    assert set(rows.tolist()) == {0, 1, 2}
    program = peft_cases.captured("bart", "SEQ_CLS")
    end = program.signature.inputs[0].end
    for case in cases_for(program)[0]:
        ids, mask = case.values["input_ids"], case.values["attention_mask"].bool()
        assert ((ids == end) & mask).sum(1).tolist() == [2] * case.batch
        last = mask.long().cumsum(1).argmax(1)
        assert (ids[torch.arange(case.batch), last] == end).all()


def test_images_differ_from_case_to_case():
    found, ids, vocabulary = cases_for(zoo.captured("vit", "image-classification", 1))
    assert (ids, vocabulary) == (0, 0)
    images = torch.cat([c.values["pixel_values"] for c in found])
    assert images.std() > 0.9
    assert len(images.unique(dim=0)) == len(images)


def test_noise_is_the_distance_from_float64():
    dtype = torch.bfloat16
    model = zoo.build("llama", "causal-lm", layers=1).to(dtype)
    graph = peftc.apply("mam", capture(model), set={"tokens": 3, "dim": 4}).eval()
    reference.randomise(graph)
    values = [list(c.values.values()) for c in cases_for(graph)[0][:3]]
    own, wide = Together(graph, values, [0, 2]).outputs()
    with torch.no_grad():
        for k, given in enumerate(values):
            assert all(a.equal(b) for a, b in zip(own[k], graph.flat(*given), strict=True))
    assert set(wide) == {0, 2}
    again = capture(model.double())
    exact = peftc.apply("mam", again, set={"tokens": 3, "dim": 4}).eval()
    with torch.no_grad():
        for (_, a), (_, b) in zip(exact.peft_parameters(), graph.peft_parameters(), strict=True):
            a.copy_(b.double())
        (wanted,) = exact.flat(*values[2])
    assert wide[2][0].dtype == torch.float64
    noise = (own[2][0].double() - wanted).abs().max()
    apart = (wide[2][0] - wanted).abs().max()  # angles are of float32 in both
    assert apart < noise / 4
    assert noise > torch.finfo(dtype).eps / 8


def test_weights_on_disk_are_read_once_for_all_cases(monkeypatch):
    graph = linking.weightless(*CASE)
    count = []
    read = Stored.read
    monkeypatch.setattr(Stored, "read", lambda self: count.append(self) or read(self))
    values = [list(c.values.values()) for c in cases_for(graph)[0]]
    Together(graph, values, range(len(values))).outputs()
    assert len(count) == len(set(count)) > 10


def test_without_a_form_in_float64_the_noise_is_assumed(monkeypatch):
    graph = linking.artifact(*CASE)[0]

    def refuse(self, n):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(Together, "widely", refuse)
    report = peftc.verify(graph, linking.linked(*CASE))
    assert report.ok
    assert all(r.noise > 1e-6 for r in report.rows)


def test_how_a_weight_differs_is_said():
    ours = torch.linspace(-1, 1, 12).reshape(3, 4)
    assert compared("w", ours, ours.clone(), exact=True) is None
    theirs = ours.clone()
    theirs[1, 2] += 1e-7
    found = compared("w", ours, theirs, exact=True)
    assert found is not None
    assert (found.how, found.name) == ("1 of 12 numbers", "w")
    assert found.difference == pytest.approx(1e-7, rel=0.3)
    assert compared("w", ours, theirs, exact=False) is None  # rounded otherwise
    assert compared("w", ours, theirs + 1e-5, exact=False) is not None
    assert getattr(compared("w", ours, None, exact=True), "how", "") == ABSENT
    shape = compared("w", ours, ours.t(), exact=True)
    assert getattr(shape, "how", "") == "[4, 3] in the file, [3, 4] in the graph"
    dtype = compared("w", ours, ours.half(), exact=True)
    assert getattr(dtype, "how", "") == "float16 in the file, float32 in the graph"
    nan = torch.tensor([float("nan"), 1.0])
    assert compared("w", nan, nan.clone(), exact=True) is None
    assert compared("w", nan, torch.ones(2), exact=False) is not None


def test_bytes_are_found_in_a_file_in_any_order(tmp_path):
    parts = [torch.randn(7, 5), torch.zeros(300), torch.randn(2000), torch.randn(3).bfloat16()]
    data = [bytes(p.reshape(-1).view(torch.uint8).numpy().data) for p in parts]
    (tmp_path / "f").write_bytes(b"\0" * 999 + data[2] + b"x" + data[1] + data[3] + data[0])
    inside = Inside(tmp_path / "f")
    assert all(inside.has(p) for p in parts)
    parts[2][1999] += 1
    assert not inside.has(parts[2])
    assert not inside.has(torch.zeros(2000))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports of one graph, its updates merged or apart, by format."""
    graph = linking.artifact(*CASE)[0]
    home = tmp_path_factory.mktemp("planted")
    for kind in ("onnx", "torchscript", "hf"):
        peftc.export(graph, kind, home / kind, weights="copy")
        assert peftc.verify(graph, home / kind).ok
    return graph, home


LAYER = "encoder.layer.0."
PLANTED = [
    ("onnx", tensor("word_embeddings.weight", row(57)), "weights outputs"),
    ("onnx", tensor("position_embeddings.weight", row(-1)), "weights outputs"),
    ("onnx", tensor(LAYER + "output.LayerNorm.weight", off(1e-3)), "weights outputs"),
    ("onnx", tensor(LAYER + "attention.self.query.weight", times(1.001)), "weights outputs"),
    ("onnx", corruptions.setting("LayerNormalization", "epsilon", 1e-5), "outputs"),
    ("onnx", corruptions.setting("Gelu", "approximate", "tanh"), "outputs"),
    ("onnx", corruptions.onnx_(corruptions.unmasked), "outputs"),
    ("torchscript", tensor(LAYER + "attention.self.value.weight", heads(6)), "weights outputs"),
    ("torchscript", corruptions.code(*corruptions.GELU), "outputs"),
    ("hf", tensor("token_type_embeddings.weight", row(1)), "weights outputs"),
]


@pytest.mark.parametrize("number", range(len(PLANTED)))
def test_what_is_planted_in_a_file_is_seen(exported, number, tmp_path, monkeypatch):
    kind, change, wanted = PLANTED[number]
    graph, home = exported
    module = importlib.import_module("peftc.backends.verify")
    monkeypatch.setattr(module, "first_difference", lambda *args: "")
    shutil.copytree(home / kind, tmp_path / kind)
    change(tmp_path / kind)
    settle(tmp_path / kind)
    report = peftc.verify(graph, tmp_path / kind)
    assert not report.ok
    assert bool(report.weights) == ("weights" in wanted)
    assert len(report.weights) <= 1
    assert bool(report.differing) == ("outputs" in wanted)


def test_what_is_small_in_a_decoder_is_seen(tmp_path):
    """A causal mask one token short, and a constant that is off in its fourth digit."""
    graph = linking.artifact("gpt2", "causal-lm", "lora", False)[0]
    out = peftc.export(graph, "onnx", tmp_path / "out", weights="copy").folder
    before = (out / "model.onnx").read_bytes()
    for change in (operation("LessOrEqual", "Less"), constant(0.044715, 0.0447)):
        (out / "model.onnx").write_bytes(before)
        change(out)
        settle(out)
        report = peftc.verify(graph, out)
        assert report.differing == ("logits",)
        assert not report.weights
        assert report.first
    assert report.difference < 1e-2


DEEP = {
    "onnx": corruptions.setting("LayerNormalization", "epsilon", 2e-12),
    "torchscript": corruptions.code("9.9999999999999998e-13", "2.0e-12"),
}


@pytest.mark.parametrize("kind", list(DEEP))
def test_a_constant_that_does_less_than_rounding_is_seen_by_a_thorough_comparison(
    exported, kind, tmp_path
):
    graph, home = exported
    assert peftc.verify(graph, home / kind, deep=True).lines == ()
    shutil.copytree(home / kind, tmp_path / kind)
    DEEP[kind](tmp_path / kind)
    settle(tmp_path / kind)
    assert peftc.verify(graph, tmp_path / kind).ok
    report = peftc.verify(graph, tmp_path / kind, deep=True)
    assert not report.ok
    assert not report.differing
    assert report.lines is not None
    assert [line[0] for line in report.lines] == ["-", "+"]
    assert "layer_norm" in report.lines[0]


def test_half_precision_passes(tmp_path):
    model = zoo.build("bert", "sequence-classification", layers=1).half()
    graph = peftc.apply("lora", capture(model))
    reference.randomise(graph)
    peftc.export(graph, "torchscript", tmp_path / "out")
    report = peftc.verify(graph, tmp_path / "out")
    assert report.ok, report
    assert max(r.noise for r in report.rows) > 1e-4


def test_linked_weights_are_not_read_again(monkeypatch):
    from peftc.backends.same_weights import differing_weights

    graph, exported = linking.weightless(*CASE), linking.linked(*CASE)
    read = []
    own = Stored.read
    monkeypatch.setattr(Stored, "read", lambda self: read.append(self.file.name) or own(self))
    found, compared = differing_weights(graph, exported)
    assert not found
    assert compared > 20
    assert set(read) <= {"peft.safetensors"}


def test_an_export_for_peft_says_how_it_generates_where_it_does(tmp_path):
    prefix = {"tokens": 5}
    decoder = peftc.apply("prefix", zoo.captured("llama", "causal-lm", 1), set=prefix)
    exported = peftc.export(decoder, "peft", tmp_path / "decoder")
    assert [n.code for n in exported.notes] == ["W401"]
    assert exported.facts["notes"] == [n.to_json() for n in exported.notes]
    encoder = peftc.apply("prefix", zoo.captured("bert", "sequence-classification", 1), set=prefix)
    assert not peftc.export(encoder, "peft", tmp_path / "encoder").notes
