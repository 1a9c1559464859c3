"""Models that cannot be captured as they are, each told by its cause; and those that can."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig

from peftc.capture.fake import without_weights
from peftc.capture.load import check_unquantised, load_model, model_class
from peftc.capture.suitable import check_suitable
from peftc.ground.diagnostics import PeftcError

FAMILY = ("bert", "sequence-classification")


def refusal(model) -> str:
    with pytest.raises(PeftcError) as caught:
        check_suitable(model)
    return str(caught.value)


@pytest.mark.parametrize("kind", zoo.CONFIGS)
def test_plain_models_are_suitable(kind):
    check_suitable(zoo.model(kind))
    with torch.device("meta"):
        check_suitable(type(zoo.model(kind))(zoo.model(kind).config))


def test_a_model_of_fake_tensors_is_suitable():
    check_suitable(without_weights(lambda: zoo.build(*FAMILY)))


def test_half_precision_tied_and_grown_embeddings_are_suitable():
    model = zoo.build("gpt2", "causal-lm").to(torch.bfloat16)
    check_suitable(model)
    model.resize_token_embeddings(128, mean_resizing=False)
    check_suitable(model)


def test_adapters_inside_a_model_are_found_by_their_library():
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(target_modules=["query"]), zoo.build(*FAMILY))
    assert type(model) is type(zoo.model(*FAMILY))
    assert "E210]: BertForSequenceClassification has adapters of another library" in refusal(model)


def test_weights_that_hooks_fetch_are_not_in_memory(tmp_path):
    from accelerate import cpu_offload, disk_offload

    model = zoo.build(*FAMILY)
    cpu_offload(model, torch.device("cpu"))
    text = refusal(model)
    assert "E209]: BertForSequenceClassification is not whole on one device: not in memory" in text
    model = zoo.build(*FAMILY)
    disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert "E209" in refusal(model)


def test_wrappers_name_what_is_inside():
    assert "model._orig_mod" in refusal(torch.compile(zoo.build(*FAMILY)))
    assert "model.module" in refusal(nn.DataParallel(zoo.build(*FAMILY)))
    inside = nn.Sequential(nn.Identity(), zoo.build(*FAMILY))
    assert "give the model itself: model.1" in refusal(inside)


@pytest.mark.filterwarnings("ignore")
def test_linears_of_torch_that_are_quantised():
    from torch.ao.quantization import quantize_dynamic

    model = quantize_dynamic(zoo.build(*FAMILY), {nn.Linear}, dtype=torch.qint8)
    assert "bert.encoder.layer.0.attention.self.query holds packed numbers" in refusal(model)


@pytest.mark.parametrize("said", [{"quant_method": "gptq", "bits": 4}, BitsAndBytesConfig()])
def test_a_config_that_says_quantised(said):
    config = zoo.CONFIGS["bert"]()
    config.quantization_config = said
    with pytest.raises(PeftcError, match=r"E208.*quantised with (gptq|bitsandbytes)"):
        check_unquantised(config, "here")


def test_names_out_of_files_are_model_classes_or_nothing(tmp_path):
    import transformers

    assert model_class("BertModel", transformers) is transformers.BertModel
    names = ("AutoModel", "AutoTokenizer", "BertConfig", "pipeline", "logging", "os", "Trainer")
    assert [model_class(n, transformers) for n in names] == [None] * len(names)
    config = zoo.CONFIGS["bert"]()
    config.architectures = ["pipeline"]
    config.save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path), weights=False)).__name__ == "BertModel"
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["pipeline"]
