"""Merged checkpoints: transformers loads them, in a process of its own, with the same outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import linking
import numpy as np
import pytest
import reference
import torch
import zoo
from safetensors.torch import load_file
from tolerances import EXPORT

import peftc
from peftc.backends.hf import NOT_COPIED
from peftc.ground.diagnostics import PeftcError

LORA = {"low_rank": {"rank": 3}}
# Two methods on one linear, biases, norms and a head trained: everything that can be merged.
MIXED = {
    "peftc": 1,
    "name": "mixed",
    "insert": [
        {"id": "q", "at": "attn.q", "delta": LORA, "compose": {"add": {"scale": 2}}},
        {"id": "q2", "at": "attn.q", "delta": {"vector": {}}, "compose": "multiply"},
        {"id": "up", "at": "ffn.up", "layers": [1], "delta": LORA, "compose": "add"},
    ],
    "unfreeze": [{"role": "bias"}, {"role": "norm"}, {"role": "head"}],
}
SCRIPT = """
import json, sys
import numpy as np, torch, transformers
for folder, factory in json.loads(sys.argv[1]):
    model = getattr(transformers, factory).from_pretrained(folder).eval()
    with np.load(folder + "/../inputs.npz") as file:
        given = {n: torch.from_numpy(file[n]) for n in file.files}
    with torch.no_grad():
        out = model(**given)
    values = {n: v.numpy() for n, v in out.items() if isinstance(v, torch.Tensor)}
    np.savez(folder + "/../outputs.npz", **values)
print([m for m in sys.modules if m.startswith("peftc")])
"""


@dataclass
class Made:
    """A graph, the checkpoint of it, and what transformers gives for it at some inputs."""

    graph: Any
    folder: Path
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, np.ndarray]


def shuffled(graph: Any) -> Any:
    """`graph` with random numbers in everything that is trained."""
    reference.randomise(graph)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in peftc.trainable(graph).items():
        if not name.startswith("peft."):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return graph


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    """Every case, exported here and run in one process that has no peftc."""
    home = tmp_path_factory.mktemp("hf")
    classifier = zoo.captured("bert", "sequence-classification")
    mixed = shuffled(peftc.apply(MIXED, classifier))
    mixed.meta["peftc.applied"].reference = str(model_folder)
    gpt2 = linking.artifact("gpt2", "causal-lm", "lora", False)[0]
    llama = linking.weightless("llama", "causal-lm", "lora", True)
    t5 = linking.artifact("t5", "seq2seq-lm", "ia3", False)[0]
    dora = shuffled(peftc.apply("dora", classifier))
    graphs = {
        "gpt2": (gpt2, "AutoModelForCausalLM"),
        "llama": (llama, "AutoModelForCausalLM"),
        "t5": (t5, "AutoModelForSeq2SeqLM"),
        "bert": (dora, "AutoModelForSequenceClassification"),
        "mixed": (mixed, "AutoModelForSequenceClassification"),
    }
    sizes = {"input_ids", "attention_mask", "decoder_input_ids", "token_type_ids"}
    cases, wanted = [], {}
    for name, (graph, factory) in graphs.items():
        folder = home / name / "model"
        peftc.export(graph, "hf", folder)
        given = zoo.inputs(SimpleNamespace(config=graph.signature.config), 3, 9)
        assert set(given) <= sizes
        arrays: dict[str, Any] = {n: v.numpy() for n, v in given.items()}
        np.savez(folder.parent / "inputs.npz", **arrays)
        cases.append((str(folder), factory))
        wanted[name] = graph, folder, given
    command = [sys.executable, "-P", "-c", SCRIPT, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "newly initialized" not in done.stderr
    found = {}
    for name, (graph, folder, given) in wanted.items():
        with np.load(folder.parent / "outputs.npz") as file:
            found[name] = Made(graph, folder, given, {n: file[n] for n in file.files})
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert", "mixed"])
def test_transformers_alone_gives_what_the_graph_gives(made, name):
    one = made[name]
    graph = one.graph
    if name == "llama":  # exported without its weights in memory
        graph = linking.artifact("llama", "causal-lm", "lora", True)[0]
    with torch.no_grad():
        ours = graph(**one.inputs)
    compared = [n for n, v in ours.items() if isinstance(v, torch.Tensor)]
    assert compared
    for key in compared:
        got = torch.from_numpy(one.outputs[key])
        torch.testing.assert_close(got, ours[key], **EXPORT[torch.float32])
    base = graph.meta["peftc.applied"].base
    with torch.no_grad():
        before = base(**one.inputs)
    main = reference.main_output(ours)
    assert (main - reference.main_output(before)).abs().max() > 1e-2  # the pieces do something


def test_a_checkpoint_of_a_tied_model_has_the_tensors_of_the_base_and_its_frozen_numbers(made):
    one = made["gpt2"]
    base = load_file(linking.base("gpt2", "causal-lm", False) / "model.safetensors")
    own = load_file(one.folder / "model.safetensors")
    assert own.keys() == base.keys()
    changed = {n for n in own if not torch.equal(own[n], base[n])}
    assert changed == {"transformer.h.0.attn.c_attn.weight"}


def test_shards_stay_the_bases_shards(made):
    base, own = linking.base("llama", "causal-lm", True), made["llama"].folder
    index = "model.safetensors.index.json"
    theirs, ours = (json.loads((f / index).read_text()) for f in (base, own))
    assert len(set(theirs["weight_map"].values())) > 2
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    files = {p.name for p in own.iterdir()}
    assert files == {p.name for p in base.iterdir()} | {"peftc.export.json"}


def test_the_tokenizer_and_the_config_are_there_and_what_was_trained_is_too(made, model_folder):
    one = made["mixed"]
    for path in model_folder.iterdir():
        if path.name not in (*NOT_COPIED, "model.safetensors"):
            assert (one.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert (one.folder / "tokenizer.json").is_file()
    config = json.loads((one.folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["dtype"] == "float32"
    own = load_file(one.folder / "model.safetensors")
    assert own.keys() == load_file(model_folder / "model.safetensors").keys()
    for name, parameter in peftc.trainable(one.graph).items():
        if not name.startswith("peft.") and not name.endswith(("query.bias", "dense.bias")):
            assert torch.equal(own[name], parameter.detach()), name


def test_verify_runs_it_with_transformers_at_several_sizes(made):
    report = peftc.verify(made["mixed"].graph, made["mixed"].folder)
    assert report.kind == "hf"
    assert len({(r.batch, r.length) for r in report.rows}) >= 4
    assert report.ok, report


def test_what_cannot_be_merged_is_refused_by_name_and_nothing_is_written(tmp_path):
    spec = {
        "peftc": 1,
        "name": "two",
        "insert": [
            {"id": "qv", "at": ["attn.q", "attn.v"], "delta": LORA, "compose": "add"},
            {"id": "after", "at": "ffn.out", "delta": {"bottleneck": {"dim": 4}}},
            {"id": "soft", "at": "embed.out", "delta": {"prompt": {"tokens": 3}}},
        ],
    }
    graph = peftc.apply(spec, zoo.captured("bert", "sequence-classification"))
    with pytest.raises(PeftcError) as caught:
        peftc.export(graph, "hf", tmp_path / "out")
    assert str(caught.value) == (
        "error[E411]: soft, after cannot be merged into the model's weights\n"
        "  = note: soft: 1 sites, its rows are no weights of the model\n"
        "  = note: after: 3 sites, a nonlinearity lies between its projections\n"
        "  = help: onnx and torchscript keep every piece"
    )
    assert not any(tmp_path.iterdir())


def test_a_base_that_was_cut_short_is_refused_and_nothing_is_written(model_folder, tmp_path):
    base = shutil.copytree(model_folder, tmp_path / "base")
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    graph = peftc.apply("lora", zoo.captured("bert", "sequence-classification"))
    graph.meta["peftc.applied"].reference = str(base)
    with pytest.raises(PeftcError, match=r"error\[E303\].*is damaged: it has .* its header says"):
        peftc.export(graph, "hf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_an_update_of_a_tied_head_is_refused(tmp_path):
    head = {"id": "head", "at": {"module": "lm_head"}, "delta": LORA, "compose": "add"}
    spec = {"peftc": 1, "name": "head", "insert": [head]}
    graph = peftc.apply(spec, linking.captured("gpt2", "causal-lm"))
    with pytest.raises(PeftcError) as caught:
        peftc.export(graph, "hf", tmp_path / "out")
    assert "note: head: 1 sites, no weight beside it could take it up" in str(caught.value)
