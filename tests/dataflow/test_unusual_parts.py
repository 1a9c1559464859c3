"""Models without mixing weights, and models whose sizes stand in the config of a part."""

from __future__ import annotations

import pytest
from transformers import (
    FNetConfig,
    FNetModel,
    SegformerConfig,
    SegformerForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
)

from peftc.capture import capture
from peftc.capture.inputs import example_for
from peftc.dataflow import find_sites
from peftc.ground.diagnostics import PeftcError

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
}  # fmt: skip


def test_layers_of_a_model_whose_mixing_has_no_weights_are_its_feed_forwards():
    given = {**SIZES, "vocab_size": 50, "max_position_embeddings": 32}
    sites = find_sites(capture(FNetModel(FNetConfig.from_dict(given)).eval()))
    assert sites.layers == {"": 2}
    assert [s.layer for s in sites.sites if s.role == "ffn.out"] == [0, 1]


def test_the_size_of_an_image_may_stand_in_the_config_of_the_part_that_sees():
    config = SiglipConfig.from_dict(
        {
            "vision_config": {**SIZES, "image_size": 24, "patch_size": 8},
            "text_config": {**SIZES, "vocab_size": 50, "projection_size": 24},
        }
    )
    [pixels] = example_for(SiglipForImageClassification(config)).inputs
    assert pixels.dims == ("batch", 3, 24, 24)


def test_a_model_without_an_image_size_is_told_to_have_one():
    model = SegformerForImageClassification(SegformerConfig(depths=[1] * 4))
    with pytest.raises(PeftcError) as refused:
        capture(model)
    assert str(refused.value).splitlines() == [
        "error[E203]: the segformer config does not say how large its images are",
        "  = help: set `image_size` in its config: the graph takes images of that size alone",
    ]
    model.config.image_size = 64
    assert capture(model.eval()).signature.inputs[0].dims == ("batch", 3, 64, 64)
