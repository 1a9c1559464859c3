"""`peftc import` and `peftc export --to peft` as a person types them."""

from __future__ import annotations

import json

import peft_cases
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from peftc.cli.main import run

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("captures_once")]


@pytest.fixture(scope="module")
def checkpoint(model_folder, tmp_path_factory):
    import peft

    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS",
        init_lora_weights=False,
    )  # fmt: skip
    return peft_cases.saved(
        peft.get_peft_model(model, config), tmp_path_factory.mktemp("peft") / "lora"
    )


def test_in_and_out(checkpoint, model_folder, tmp_path, capsys):
    out = tmp_path / "artifact"
    assert run(["import", str(checkpoint), "--model", str(model_folder), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert said == (
        f"read   {checkpoint}  LORA, on BertForSequenceClassification\n"
        "load   14 of 14 tensors: 6 places, 2 parameters of the model itself\n"
        f"wrote  {out}/spec.yaml   equals the shipped spec `lora` with rank=8, alpha=16\n"
        f"Next:  peftc export {out} --to onnx   or   peftc export {out} --to peft\n"
    )
    assert run(["export", str(out), "--to", "peft", "-o", str(tmp_path / "back")]) == 0
    assert "PASS  max |diff| " in capsys.readouterr().out
    before, after = (
        load_file(f / "adapter_model.safetensors") for f in (checkpoint, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(v.equal(after[k]) for k, v in before.items())
    # Never overwritten, and refused before anything is loaded.
    assert run(["import", str(checkpoint), "-o", str(out)]) == 5
    assert capsys.readouterr().err.startswith("error[E306]")


def test_json_and_the_base_that_the_checkpoint_names(checkpoint, tmp_path, capsys):
    assert run(["import", str(checkpoint), "-o", str(tmp_path / "a"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["equals"] == "`lora` with rank=8, alpha=16"
    assert data["tensors"] == 14


def test_no_base(checkpoint, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": None})
    )
    (copy / "adapter_model.safetensors").write_bytes(
        (checkpoint / "adapter_model.safetensors").read_bytes()
    )
    assert run(["import", str(copy), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"error[E008]: {copy} does not name its base model\n"
        f"  = help: peftc import {copy} --model MODEL -o {tmp_path / 'out'}\n"
    )
    assert not (tmp_path / "out").exists()
