"""Names of inserted modules: what is printed is parsed to the same, whatever a model is called."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from peftc.capture.piece_name import (
    BEHIND_A_SITE,
    OF_ALL_SITES,
    STACKS,
    Part,
    PieceName,
    of_path,
    piece_name,
)
from peftc.dataflow.site import joined
from peftc.spec.insertion import ROLES

WORDS = st.sampled_from([
    "gate", "reparam", "mask", "hide", "shift", "mean", "majority", "keep", "encoder", "decoder",
    "ffn", "layer0", "act", "attn", "q", "x_gate", "gate_keep", "0", "_", "proj",
])  # fmt: skip
PATHS = st.lists(WORDS, min_size=1, max_size=4).map(".".join)
IDS = st.sampled_from(["x_gate", "reparam", "gate", "tasks", "mask", "shift_encoder", "peft", "a"])
LAYERS = st.none() | st.integers(0, 120)
OF_ROLES = st.builds(
    joined, st.sampled_from(["", *STACKS]), LAYERS, st.sampled_from(ROLES), st.integers(0, 3)
)
OF_PATHS = st.builds(joined, st.just(""), st.none(), PATHS.map(of_path), st.integers(0, 3))
AT_A_SITE = st.builds(
    PieceName, IDS, OF_ROLES | OF_PATHS, st.sampled_from([Part.DELTA, *BEHIND_A_SITE])
)
OF_ALL = st.builds(PieceName, IDS, st.sampled_from(["", *STACKS]), st.sampled_from(OF_ALL_SITES))


@settings(max_examples=400, deadline=None)
@given(AT_A_SITE | OF_ALL)
def test_what_is_printed_is_parsed_to_the_same(name):
    assert piece_name(name) == name
    assert piece_name(f"{name}.some_task.down.weight") == name


def test_names_are_written_as_in_every_artifact():
    assert str(PieceName("a", "layer3_ffn_gate")) == "peft.a.layer3_ffn_gate"
    assert str(PieceName("a", "layer3_ffn_gate", Part.GATE)) == "peft.a.layer3_ffn_gate_gate"
    assert str(PieceName("a", "layer0_attn_kv", task="qa")) == "peft.a.layer0_attn_kv.qa"
    assert str(PieceName("a", part=Part.REPARAM, task="qa")) == "peft.a.reparam.qa"
    assert str(PieceName("a", "decoder", Part.SHIFT)) == "peft.a.shift_decoder"
    assert of_path("encoder.layer.0.attention") == "encoder_layer_0_attention"
    assert of_path("block.router.gate") == "block_router_gate_"
    assert piece_name("encoder.peft.a") is None
