"""A model that comes with code of its own: run only where that is asked for, by every verb."""

from __future__ import annotations

import json
import sys

import pytest
import zoo
from transformers import dynamic_module_utils

from peftc.cli.main import run

CODE = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder of a type that transformers does not have."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "model"
    zoo.build("bert", layers=1).save_pretrained(folder)
    (folder / "modeling_own.py").write_text(CODE)
    path = folder / "config.json"
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    said = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": own}
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    yield folder
    for name in [n for n in sys.modules if n.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.parametrize("weights", ["", "--random-weights"])
def test_it_is_run_only_where_it_is_trusted(model, tmp_path, capsys, weights):
    if weights:
        (model / "model.safetensors").unlink()
    apply = ["apply", "lora", str(model), "-o", str(tmp_path / "out"), *weights.split()]
    export = ["export", str(tmp_path / "out"), "--to", "torchscript"]
    for verb in (apply, export):
        assert run(verb) == 4
        err = capsys.readouterr().err
        assert "error[E205]" in err
        assert "--trust-remote-code" in err
        assert run([*verb, "--trust-remote-code"]) == 0, capsys.readouterr().err
    assert "PASS" in capsys.readouterr().out
