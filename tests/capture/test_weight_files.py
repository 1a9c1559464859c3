"""The safetensors files of a model, found and read without loading them; damaged ones refused."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from peftc.capture.weight_files import stored_weights
from peftc.ground.diagnostics import PeftcError


def test_shards_are_found_by_their_index(tmp_path):
    values = {"a.weight": torch.randn(3, 5), "b.weight": torch.arange(7)}
    for k, (name, value) in enumerate(values.items()):
        save_file({name: value}, tmp_path / f"{k}.safetensors")
    index = {"weight_map": {"a.weight": "0.safetensors", "b.weight": "1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    stored = stored_weights(tmp_path)
    assert stored is not None
    assert [path.name for path in stored.files] == ["0.safetensors", "1.safetensors"]
    assert all(torch.equal(stored.tensors[n].read(), v) for n, v in values.items())


def test_a_folder_without_weights_has_none(tmp_path):
    assert stored_weights(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(PeftcError, match=r"error\[E303\].*index.json cannot be read"):
        stored_weights(tmp_path)


@pytest.mark.parametrize(
    "header", ["", "[]", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [1]}}'], ids=repr
)
def test_a_header_that_is_none_is_refused(header, tmp_path):
    data = struct.pack("<Q", len(header)) + header.encode() + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(PeftcError, match=r"error\[E303\].*model.safetensors cannot be read"):
        stored_weights(tmp_path)
