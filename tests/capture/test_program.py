"""A Program is called like its model and answers like it, loss included."""

from __future__ import annotations

import inspect

import pytest
import torch
import zoo

from peftc.ground.diagnostics import PeftcError

FAMILIES = [
    ("bert", "base"),
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("llama", "sequence-classification"),
    ("t5", "seq2seq-lm"),
]
SHAPES = [(3, 8), (1, 4), (2, 33)]


@pytest.mark.parametrize("family", FAMILIES, ids="/".join)
def test_outputs_are_the_model_s_at_other_shapes(family):
    model, program = zoo.model(*family), zoo.captured(*family)
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            want, got = model(**inputs, use_cache=False), program(**inputs)
        assert type(got) is type(want)
        for name, value in got.items():
            torch.testing.assert_close(value, want[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "labels"),
    [
        (("bert", "sequence-classification"), lambda b, s: torch.arange(b) % 5),
        (("bert", "token-classification"), lambda b, s: torch.arange(b * s).reshape(b, s) % 5),
        (("llama", "causal-lm"), lambda b, s: torch.arange(b * s).reshape(b, s) % 90),
        (("gpt2", "causal-lm"), lambda b, s: torch.arange(b * s).reshape(b, s) % 90),
    ],
    ids=lambda v: "/".join(v) if isinstance(v, tuple) else "",
)
def test_the_loss_is_the_model_s(family, labels):
    model, program = zoo.model(*family), zoo.captured(*family)
    inputs = {**zoo.inputs(model, 3, 8), "labels": labels(3, 8)}
    with torch.no_grad():
        torch.testing.assert_close(program(**inputs).loss, model(**inputs).loss, rtol=0, atol=0)


def test_an_encoder_decoder_makes_its_decoder_inputs_from_the_labels():
    model, program = zoo.model("t5", "seq2seq-lm"), zoo.captured("t5", "seq2seq-lm")
    inputs = zoo.inputs(model, 3, 8)
    del inputs["decoder_input_ids"]
    inputs["labels"] = torch.arange(3 * 6).reshape(3, 6) + 4
    inputs["labels"][1:, 4:] = -100
    with torch.no_grad():
        got, want = program(**inputs), model(**inputs)
    torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=0)
    torch.testing.assert_close(got.loss, want.loss, rtol=0, atol=0)


def test_absent_inputs_have_the_model_s_defaults():
    model, program = zoo.model("bert", "base"), zoo.captured("bert", "base")
    ids = zoo.inputs(model, 2, 7)["input_ids"]
    with torch.no_grad():
        got, want = program(input_ids=ids), model(input_ids=ids)
    torch.testing.assert_close(got.last_hidden_state, want.last_hidden_state, rtol=0, atol=1e-6)


def test_unknown_and_missing_inputs_are_refused():
    program = zoo.captured("bert", "base")
    with pytest.raises(PeftcError) as caught:
        program(input_ids=torch.ones(2, 3, dtype=torch.long), inputs_embed=torch.ones(2, 3, 24))
    assert str(caught.value) == (
        "error[E204]: the graph cannot be called with these inputs; unknown: inputs_embed\n"
        "  = help: it takes: input_ids, attention_mask, token_type_ids"
    )
    with pytest.raises(PeftcError, match="missing: input_ids"):
        program()


def test_training_loops_can_read_the_signature():
    program = zoo.captured("bert", "sequence-classification")
    names = list(inspect.signature(program.forward).parameters)
    assert names == ["input_ids", "attention_mask", "token_type_ids", "labels"]


def test_train_mode_has_the_model_s_own_dropouts():
    model, program = zoo.model("bert", "base"), zoo.captured("bert", "base").clone(pieces=True)
    inputs = zoo.inputs(model, 2, 7)
    dropouts = [m for m in program.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(dropouts) == 1 + 2 * 3  # embeddings, then two in each of 3 layers
    with torch.no_grad():
        calm = program(**inputs).last_hidden_state
        program.train()
        torch.manual_seed(0)
        first = program(**inputs).last_hidden_state
        torch.manual_seed(0)
        again = program(**inputs).last_hidden_state
        program.eval()
        torch.testing.assert_close(program(**inputs).last_hidden_state, calm, rtol=0, atol=0)
    assert torch.equal(first, again)
    assert (first - calm).abs().max() > 1e-3


def test_capture_leaves_the_model_as_it_was():
    from peftc.capture import capture

    model = zoo.build("llama", "causal-lm").train()
    before = model.config.to_dict()
    capture(model)
    assert model.config.to_dict() == before
    assert model.training
    assert all(m.training for m in model.modules())


def test_weights_keep_their_names_and_storage():
    model, program = zoo.model("bert", "base"), zoo.captured("bert", "base")
    own = dict(model.named_parameters())
    for name, parameter in program.named_parameters():
        assert parameter.data_ptr() == own[name].data_ptr()
        assert not parameter.requires_grad
    assert {n for n, _ in program.named_parameters()} == set(own)


def test_the_graph_is_functional_and_free_of_checks():
    for family in FAMILIES:
        for node in zoo.captured(*family).graph.nodes:
            name = getattr(node.target, "__name__", str(node.target))
            assert "assert" not in name
            if node.op == "call_function" and hasattr(node.target, "_schema"):
                assert not node.target._schema.is_mutable, node


def test_train_mode_has_the_dropout_inside_attention_as_well():
    program = zoo.captured("bert", "base").clone(pieces=True)
    for module in program.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # what is left is the kernel's own
    inputs = zoo.inputs(zoo.model("bert", "base"), 2, 7)
    with torch.no_grad():
        calm = program(**inputs).last_hidden_state
        program.train()
        moved = program(**inputs).last_hidden_state
    assert (moved - calm).abs().max() > 1e-3
