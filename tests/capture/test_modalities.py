"""Images and sound: captured with free batch, and rewritten like text."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    ASTConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    Dinov2Config,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

import peftc

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {**SIZES, "intermediate_size": 40, "image_size": 24, "patch_size": 8, "num_labels": 5}
MODELS = {
    "vit": (AutoModelForImageClassification, ViTConfig(**IMAGE)),
    "dinov2": (AutoModelForImageClassification, Dinov2Config(**IMAGE)),
    "wav2vec2": (
        AutoModelForAudioClassification,
        Wav2Vec2Config(
            **SIZES, intermediate_size=40, conv_dim=(12, 14), conv_stride=(4, 2),
            conv_kernel=(5, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2, classifier_proj_size=16, num_labels=5,
        ),
    ),
    "whisper": (
        AutoModelForAudioClassification,
        WhisperConfig(
            d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=36, num_mel_bins=10,
            max_source_positions=30, vocab_size=99, pad_token_id=0, num_labels=5,
        ),
    ),
    "spectrogram": (
        AutoModelForAudioClassification,
        ASTConfig(**SIZES, intermediate_size=40, max_length=40, num_mel_bins=24, num_labels=5),
    ),
}  # fmt: skip
SHAPES = {
    "vit": (3, 24, 24), "dinov2": (3, 24, 24), "wav2vec2": (150,), "whisper": (10, 60),
    "spectrogram": (40, 24),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def sample(request):
    """A tiny model of one kind, its inputs at batch 2, and what it gives."""
    factory, config = MODELS[request.param]
    torch.manual_seed(0)
    model = factory.from_config(config).eval()
    given = {model.main_input_name: torch.randn(2, *SHAPES[request.param])}
    if request.param == "wav2vec2":
        mask = torch.ones(2, 150, dtype=torch.long)
        mask[1, 120:] = 0
        given["attention_mask"] = mask
    with torch.no_grad():
        return model, given, model(**given).logits


@pytest.mark.parametrize("spec", ["houlsby", "lora", "ia3", "ptuning2", "bitfit"])
def test_a_shipped_spec_starts_as_the_model_and_changes_it(sample, spec, captures_once):
    model, given, wanted = sample
    graph = peftc.apply(spec, model, set={"init": "zero_up"} if spec == "houlsby" else None)
    found = graph(**given)["logits"]
    if spec != "ptuning2":
        assert torch.equal(found, wanted)
    heads = [n for n in peftc.trainable(graph) if n.startswith(("classifier", "projector"))]
    assert heads, "the head that the task added is trained"
    for p in peftc.trainable(graph).values():
        torch.nn.init.normal_(p, std=0.2)
    changed = graph(**given)["logits"]
    assert not torch.allclose(changed, wanted)
    changed.square().mean().backward()
    assert all(p.grad is not None for p in peftc.trainable(graph).values())


def test_a_prompt_in_front_of_an_image_starts_from_no_words():
    factory, config = MODELS["vit"]
    with pytest.raises(peftc.PeftcError, match=r"E114.*no words"):
        peftc.apply("prompt", factory.from_config(config))
