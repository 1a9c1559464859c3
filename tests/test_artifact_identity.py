"""What an artifact is bound to: its spec, its lock, and every tensor and file of its base."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
from types import SimpleNamespace

import artifact_edits
import pytest
import torch
import yaml
import zoo
from own_models import OwnConfig, OwnModel
from sealing import older, reseal
from torch import nn
from transformers import AutoModelForSequenceClassification

import peftc
from peftc.artifact.buffers import Buffer, compared
from peftc.artifact.folder import fingerprint
from peftc.artifact.lock import LOCK, SPEC, read_lock
from peftc.capture import capture
from peftc.capture.listing import contents
from peftc.cli.main import run
from peftc.cli.verbs.train import padding_of
from peftc.ground.diagnostics import PeftcError

BERT, LLAMA = ("bert", "sequence-classification"), ("llama", "sequence-classification")
LORA = {"peftc": 1, "name": "n", "insert": [
    {"id": "a", "at": "attn.q", "delta": {"low_rank": {"rank": 3}}}]}  # fmt: skip


def refusal(folder, model=None, **options) -> str:
    with pytest.raises(PeftcError) as caught:
        peftc.load(folder, model, **options)
    return str(caught.value).replace(str(folder), "out")


@pytest.fixture(scope="module")
def every_piece(tmp_path_factory):
    """An artifact with every piece that has options beside its tensors, and its graph."""
    spec = {"peftc": 1, "name": "n", "insert": copy.deepcopy(artifact_edits.INSERT)}
    graph = peftc.apply(spec, zoo.captured(*BERT))
    return graph, peftc.save(graph, tmp_path_factory.mktemp("every") / "out")


# Of each the tensors fit, and the lock agrees: the graph itself has to be another.
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("insert", 0, "compose", "add", "scale"), 2.5),
        (("insert", 0, "delta", "low_rank", "dropout"), 0.2),
        (("insert", 1, "delta", "dora", "scale"), 1.6),
        (("insert", 2, "delta", "bottleneck", "act"), "gelu"),
        (("insert", 2, "delta", "bottleneck", "act"), "gelu_tanh"),
        (("insert", 3, "delta", "pipe", 1, "act"), "identity"),
        (("insert", 3, "delta", "pipe", 2, "scale"), 0.8),
        (("insert", 5, "delta", "prefix", "reparam", "act"), "relu"),
        (("insert", 6, "delta", "prompt", "reparam", "act"), "gelu"),
    ],
)
def test_another_option_of_a_piece_is_refused(every_piece, tmp_path, place, value):
    folder = shutil.copytree(every_piece[1], tmp_path / "out")
    data = yaml.safe_load((folder / SPEC).read_text())
    part = data
    for key in place[:-1]:
        part = part[key]
    assert part[place[-1]] != value
    part[place[-1]] = value
    (folder / SPEC).write_text(yaml.safe_dump(data))
    assert refusal(folder, zoo.captured(*BERT)).startswith("error[E321]: out/spec.yaml was changed")
    reseal(folder)
    text = refusal(folder, zoo.captured(*BERT))
    assert text.startswith("error[E301]: out: the base model gives another graph than the one")


def test_what_pieces_hold_has_a_text_without_addresses(every_piece):
    graph, _ = every_piece
    texts = [
        contents(graph.get_submodule(str(n.target)))
        for n in graph.graph.nodes
        if n.op == "call_module"
    ]
    assert any("Bottleneck(act=silu" in t for t in texts)
    assert not any("0x" in t or "<" in t for t in texts)
    assert fingerprint(graph) == fingerprint(graph.clone(pieces=True))


def test_random_edits_are_refused():
    kinds = ("spec", "lock", "header", "numbers")
    found, faults = artifact_edits.run(150, 7, kinds, names=("bert one",))
    assert not faults
    assert found.total() == 150
    assert not [k for k in found if k[1] == "same"], "an edit of a value was not seen"


def test_a_lock_of_wrong_values_is_damaged_and_no_bug(every_piece, tmp_path):
    """Sealed again, so that only the schema stands between the values and who reads them."""
    folder = shutil.copytree(every_piece[1], tmp_path / "out")
    whole = json.loads((folder / LOCK).read_text())
    for part in (whole["model"]["weights"], whole["tensors"], whole["plan"]):
        for name in list(part)[2:]:
            del part[name]  # enough of each kind
    chance, codes = random.Random(3), []
    for place in artifact_edits.places(whole):
        lock = copy.deepcopy(whole)
        part = lock
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = chance.choice([None, [], {"a": 1}, "", -1, True, 1e400, "\ud800"])
        (folder / LOCK).write_text(json.dumps(lock))
        with contextlib.suppress(TypeError, AttributeError, OSError):  # what it hashes is damaged
            reseal(folder)
        codes += code_of(folder)
    assert set(codes) <= {"E303", "E308", "E320"}
    assert len(codes) > 30


def code_of(folder) -> list[str]:
    """The code that a lock is refused with, where it is."""
    try:
        read_lock(folder)
    except PeftcError as refusal:
        return [refusal.diagnostics[0].code]
    return []


def test_rope_that_is_computed_otherwise_is_another_base(tmp_path):
    model = zoo.build(*LLAMA)
    folder = peftc.save(peftc.apply(LORA, model), tmp_path / "out")
    config = copy.deepcopy(model.config)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 20_000.0}
    other = AutoModelForSequenceClassification.from_config(config).eval()
    other.load_state_dict(model.state_dict())
    text = refusal(folder, other)
    assert "E301]: out belongs to another base model: 1 of 1 buffers differ" in text
    assert "model.rotary_emb.inv_freq" in text
    model.model.rotary_emb.inv_freq[2] += 1e-4
    assert "1 of 1 buffers differ" in refusal(folder, model)


@pytest.mark.parametrize("weights", [True, False])
def test_a_lock_that_names_another_rope_is_refused(tmp_path, weights, captures_once):
    zoo.build(*LLAMA).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    folder = peftc.save(peftc.apply(LORA, model), tmp_path / "out")
    assert peftc.load(folder, weights=weights)
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}
    reseal(folder, lambda lock: lock["model"]["config"].update(theta))
    assert "1 of 1 buffers differ" in refusal(folder, weights=weights)


class WithBatchNorm(OwnModel):
    """A model with statistics in its files, and slopes that it computes."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.norm = nn.BatchNorm1d(24)

    def stream(self, x, mask):
        return self.norm(super().stream(x, mask).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(
    "name", ["norm.running_mean", "norm.running_var", "blocks.1.attention.slopes"]
)
def test_a_changed_buffer_is_another_base(tmp_path, name):
    model = zoo_of(WithBatchNorm)
    folder = peftc.save(peftc.apply(LORA, model[1]), tmp_path / "out")
    assert peftc.load(folder, model[1])
    changed = model[1].clone()
    parent, _, last = name.rpartition(".")
    value = model[1].get_buffer(name).clone()
    value[1] += 0.01
    setattr(changed.get_submodule(parent), last, value)
    try:
        assert name in refusal(folder, changed)
    finally:
        setattr(changed.get_submodule(parent), last, model[0].get_buffer(name))


MADE = {}


def zoo_of(kind):
    """A model of our own and its capture, once."""
    if kind not in MADE:
        model = kind(OwnConfig(kind="alibi, interleaved")).eval()
        MADE[kind] = (copy.deepcopy(model), capture(model))
    return MADE[kind]


def buffer(sample, dtype="float32", shape=None, sha256="0" * 64):
    return Buffer(sha256=sha256, dtype=dtype, shape=shape or [len(sample)], sample=sample)


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        (buffer([1.0, 0.1]), buffer([1.0, 0.1]), "same"),
        (buffer([1.0, 0.1]), buffer([1.0 + 1e-7, 0.1], sha256="1" * 64), "near"),
        (buffer([1.0, 0.1]), buffer([1.0, 0.10001], sha256="1" * 64), "other"),
        (buffer([1.0, 0.1]), buffer([1.0, 0.1], sha256="1" * 64), "other"),
        (buffer([1.0, 0.1]), buffer([1.0 + 1e-7, 0.1], shape=[1, 2], sha256="1" * 64), "other"),
        (buffer([0.5] * 4, shape=[900, 8]), buffer([0.50001] * 4, shape=[900, 8], sha256="1" * 64),
         "near"),
    ],
)  # fmt: skip
def test_the_last_digits_alone_make_no_other_buffer(mine, theirs, verdict):
    other, near = compared({"b": mine}, {"b": theirs})
    assert [other, near] == ([["b"], []] if verdict == "other" else
                             [[], ["b"]] if verdict == "near" else [[], []])  # fmt: skip


def test_an_artifact_of_the_older_format_is_loaded_with_a_word(every_piece, tmp_path):
    graph, made = every_piece
    folder = shutil.copytree(made, tmp_path / "out")
    reseal(folder, older)
    reseal(folder, lambda lock: lock.update(graph_sha256=fingerprint(graph, pieces=False)))
    with pytest.warns(UserWarning, match=r"W111.*older format, 1\.0"):
        again = peftc.load(folder, zoo.captured(*BERT))
    inputs = zoo.inputs(zoo.model(*BERT), 3, 7)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, graph(**inputs).logits)
    reseal(folder, lambda lock: lock.update(graph_sha256="0" * 64))
    with pytest.warns(UserWarning, match="W111"):
        assert "E301" in refusal(folder, zoo.captured(*BERT))


def test_a_lock_cannot_be_made_older_by_its_number(every_piece, tmp_path):
    folder = shutil.copytree(every_piece[1], tmp_path / "out")
    reseal(folder, lambda lock: lock.update(format_version="1.0"))
    assert "these are not the values of format 1.0" in refusal(folder, zoo.captured(*BERT))


def test_the_command_line_tells_what_changed_beside_the_graph(
    model_folder, tmp_path, capsys, captures_once
):
    base, out = shutil.copytree(model_folder, tmp_path / "base"), tmp_path / "out"
    assert run(["apply", "lora", str(base), "-o", str(out), "-q"]) == 0
    assert "warning" not in capsys.readouterr().err
    (out / "README.md").write_text("mine")
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace('"cat":', '"kat":').replace('"cat"', '"kat"'))
    assert run(["apply", str(out), "--without", "0", "-o", str(tmp_path / "less")]) == 0
    said = capsys.readouterr().err
    assert f"warning[W112]: {out}: README.md differ from what was saved" in said
    assert f"warning[W110]: {out}: the tokenizer in {base} is not the one" in said
    assert "tokenizer.json is another" in said


def test_rows_are_filled_with_the_id_that_the_graph_looks_for():
    graph, without = zoo.captured("gpt2", "base"), SimpleNamespace(pad_token_id=None)
    assert graph.signature.config.pad_token_id == 0
    assert padding_of(graph, SimpleNamespace(pad_token_id=7)) == 0
    unset = SimpleNamespace(signature=SimpleNamespace(config=zoo.CONFIGS["gpt2"]()))
    unset.signature.config.pad_token_id = None
    assert padding_of(unset, SimpleNamespace(pad_token_id=7)) == 7
    assert padding_of(unset, without) == 0
