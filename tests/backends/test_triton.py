"""A Triton model repository: its config read by a parser of its own, its files by the runtimes."""

from __future__ import annotations

import re

import linking
import numpy as np
import pytest
import reference
import torch
import zoo

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.runtime import Session

TOKEN = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|[A-Za-z_][A-Za-z0-9_]*|-?\d+|[{}\[\]:,]')


def parsed(text: str) -> dict:
    """Protobuf's text format: fields into lists, since any may be repeated. Strict."""
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        assert found, f"not text format: {text[at : at + 20]!r}"
        at = found.end()
        if found[0].strip():
            tokens.append(found[0])

    def scalar(token: str):
        if token.startswith('"'):
            return token[1:-1]
        return int(token) if re.fullmatch(r"-?\d+", token) else token

    def message(k: int, end: str | None) -> tuple[dict, int]:
        fields: dict = {}
        while k < len(tokens) and tokens[k] != end:
            name, k = tokens[k], k + 1
            assert name.isidentifier(), name
            if tokens[k] == "{" or tokens[k : k + 2] == [":", "{"]:
                value, k = message(k + 1 + (tokens[k] == ":"), "}")
            else:
                assert tokens[k] == ":", (name, tokens[k])
                k += 1
                if tokens[k] == "[":
                    stop = tokens.index("]", k)
                    fields.setdefault(name, []).extend(
                        scalar(t) for t in tokens[k + 1 : stop] if t != ","
                    )
                    k = stop + 1
                    continue
                value, k = scalar(tokens[k]), k + 1
            fields.setdefault(name, []).append(value)
        assert (k < len(tokens)) == (end is not None), "brackets do not match"
        return fields, k + (end is not None)

    return message(0, None)[0]


def ends(config: dict, which: str) -> dict:
    """{name: (type, dims)}."""
    return {t["name"][0]: (t["data_type"][0], t["dims"]) for t in config[which]}


def test_onnx_over_linked_weights(tmp_path):
    case = ("bert", "base", "prompt", False)
    thin = linking.weightless(*case)
    place = linking.home() / "repository"
    (place / "other" / "1").mkdir(parents=True)
    exported = peftc.export(thin, "onnx", place, layout="triton", name="tiny-bert")
    assert exported.folder == place / "tiny-bert" / "1"
    text = (place / "tiny-bert" / "config.pbtxt").read_text()
    config = parsed(text)
    assert config["name"] == ["tiny-bert"]
    assert config["platform"] == ["onnxruntime_onnx"]
    assert config["default_model_filename"] == ["model.onnx"]
    assert config["max_batch_size"] == [32]
    assert config["dynamic_batching"] == [{}]
    ids = ("TYPE_INT64", [-1])
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert ends(config, "input") == dict.fromkeys(names, ids)
    assert ends(config, "output") == {
        "last_hidden_state": ("TYPE_FP32", [-1, 24]),
        "pooler_output": ("TYPE_FP32", [24]),
    }
    assert (place / "other" / "1").is_dir()
    base = linking.base("bert", "base", False) / "model.safetensors"
    assert (exported.folder / "model.safetensors").samefile(base)
    assert peftc.verify(thin, place / "tiny-bert").ok
    output = Session(exported.folder)(input_ids=np.arange(12).reshape(2, 6))
    assert output["pooler_output"].shape == (2, 24)
    with pytest.raises(PeftcError, match=r"error\[E306\].*tiny-bert exists"):
        peftc.export(thin, "onnx", place, layout="triton", name="tiny-bert")


def test_torchscript_has_numbered_names(tmp_path):
    graph = peftc.apply("lora", zoo.build("bert", "sequence-classification", layers=1))
    reference.randomise(graph)
    exported = peftc.export(graph, "torchscript", tmp_path, layout="triton", name="m")
    text = (tmp_path / "m" / "config.pbtxt").read_text()
    config = parsed(text)
    assert config["platform"] == ["pytorch_libtorch"]
    assert config["default_model_filename"] == ["model.pt"]
    assert list(ends(config, "input")) == [
        "input_ids__0", "attention_mask__1", "token_type_ids__2",
    ]  # fmt: skip
    assert ends(config, "output") == {"logits__0": ("TYPE_FP32", [5])}
    assert sorted(p.name for p in exported.folder.iterdir()) == ["model.pt", "peftc.export.json"]
    assert peftc.verify(graph, exported.folder).ok


def test_without_a_batch_axis_triton_must_not_batch():
    from dataclasses import replace

    from peftc.backends.triton import config

    signature = linking.weightless("bert", "base", "prompt", False).signature
    output = replace(signature.outputs[0], name="aux.loss", dims=())
    text = config("onnx", "m", "model.onnx", replace(signature, outputs=(output,)), [torch.float32])
    made = parsed(text)
    assert made["max_batch_size"] == [0]
    assert "dynamic_batching" not in made
    assert ends(made, "input")["input_ids"] == ("TYPE_INT64", [-1, -1])
    assert made["output"] == [
        {"name": ["aux.loss"], "data_type": ["TYPE_FP32"], "dims": [1], "reshape": [{"shape": []}]}
    ]


def test_what_triton_has_no_place_for_is_refused(tmp_path):
    graph = linking.weightless("bert", "base", "prompt", False)
    with pytest.raises(PeftcError, match=r"error\[E409\]: layout: tritn"):
        peftc.export(graph, "onnx", tmp_path, layout="tritn")
    with pytest.raises(PeftcError, match=r"error\[E409\]: `a/b` cannot be the name of a model"):
        peftc.export(graph, "onnx", tmp_path, layout="triton", name="a/b")
