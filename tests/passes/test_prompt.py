"""Soft prompts: equal to the model called with inputs_embeds, pooling on the real token."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import PARITY

import peftc

TOKENS = 6
FAMILIES = [
    ("bert", "base"),
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("gpt2", "causal-lm"),
    ("gpt2", "sequence-classification"),
    ("llama", "causal-lm"),
    ("llama", "sequence-classification"),
    ("t5", "seq2seq-lm"),
]
SHAPES = [(4, 9), (1, 5)]


def spec(place: str, **options: object) -> dict:
    delta = {"prompt": {"tokens": TOKENS, "place": place, **options}}
    return {
        "peftc": 1,
        "name": "prompt",
        "insert": [{"id": "p", "at": "embed.out", "delta": delta}],
    }


def longer(x, extra, start):
    return torch.cat([x[:, :start], extra, x[:, start:]], 1)


def expected(model, kind, task, inputs, prompt, start):
    """The plain model on embeddings with the prompt in place, its head on the real tokens."""
    batch = inputs["input_ids"].shape[0]
    rows = prompt[None].expand(batch, -1, -1)
    ones = torch.ones(batch, TOKENS, dtype=torch.long)
    given = {
        "inputs_embeds": longer(model.get_input_embeddings()(inputs["input_ids"]), rows, start),
        "attention_mask": longer(inputs["attention_mask"], ones, start),
    }
    if "token_type_ids" in inputs:
        given["token_type_ids"] = longer(inputs["token_type_ids"], 0 * ones, start)
    if kind == "t5":
        return model(**given, decoder_input_ids=inputs["decoder_input_ids"], use_cache=False).logits
    options = {} if kind == "bert" else {"use_cache": False}
    hidden = model.base_model(**given, **options).last_hidden_state
    hidden = torch.cat([hidden[:, :start], hidden[:, start + TOKENS :]], 1)
    if task == "base":
        return hidden
    if task == "token-classification":
        return model.classifier(hidden)
    if task == "causal-lm":
        return model.lm_head(hidden)
    if kind == "bert":
        return model.classifier(model.base_model.pooler(hidden))
    real = (inputs["input_ids"] != model.config.pad_token_id).long()
    last = (torch.arange(real.shape[1]) * real).argmax(-1)
    return model.score(hidden)[torch.arange(batch), last]


@pytest.mark.parametrize(("place", "start"), [("before", 0), ("after_first", 1)])
@pytest.mark.parametrize(("kind", "task"), FAMILIES)
def test_a_prompt_equals_inputs_embeds(kind, task, place, start):
    model = zoo.model(kind, task)
    graph = peftc.apply(spec(place), zoo.captured(kind, task))
    reference.randomise(graph)
    [prompt] = [p.detach() for _, p in graph.peft_parameters()]
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            got = reference.main_output(graph(**inputs))
            want = expected(model, kind, task, inputs, prompt, start)
            plain = reference.main_output(model(**inputs, use_cache=False))
        torch.testing.assert_close(got, want, **PARITY[got.dtype])
        assert got.shape == plain.shape
        assert (got - plain).abs().max() > 1e-3


def test_without_trim_the_outputs_keep_the_prompt():
    one = spec("before")
    one["insert"][0]["compose"] = {"prepend": {"trim": False}}
    model = zoo.model("llama", "causal-lm")
    graph = peftc.apply(one, zoo.captured("llama", "causal-lm"))
    inputs = zoo.inputs(model, 4, 9)
    with torch.no_grad():
        assert graph(**inputs).logits.shape == (4, 9 + TOKENS, 95)


def test_vocabulary_initialisation_takes_rows_of_the_embedding_table():
    model = zoo.model("bert", "base")
    graph = peftc.apply(spec("before", init="vocab"), zoo.captured("bert", "base"))
    [prompt] = [p.detach() for _, p in graph.peft_parameters()]
    table = model.get_input_embeddings().weight
    assert all((row == table).all(-1).any() for row in prompt)


def test_uniform_initialisation_is_within_a_half_and_follows_the_seed():
    program = zoo.captured("bert", "base")
    rows = [
        next(
            p.detach()
            for _, p in peftc.apply(
                spec("before", init="uniform"), program, seed=s
            ).peft_parameters()
        )
        for s in (0, 0, 1)
    ]
    assert 0.49 < rows[0].max() <= 0.5
    assert -0.5 <= rows[0].min() < -0.49
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_the_embedding_only_ablation_is_a_prompt_that_an_mlp_makes():
    """Li and Liang's: out(tanh(hidden(E))) before the embeddings, and nothing in the layers."""
    model = zoo.model("llama", "causal-lm")
    settings = {"tokens": TOKENS, "hidden": 9}
    graph = peftc.apply("prefix_embedding", zoo.captured("llama", "causal-lm"), set=settings)
    reference.randomise(graph)
    made = {n.split("embed_out.")[1]: p.detach() for n, p in graph.peft_parameters()}
    inner = made["embedding"] @ made["encoder.mlp.0.weight"].T + made["encoder.mlp.0.bias"]
    rows = inner.tanh() @ made["encoder.mlp.2.weight"].T + made["encoder.mlp.2.bias"]
    assert len(made) == 5
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            got = graph(**inputs).logits
            want = expected(model, "llama", "causal-lm", inputs, rows, 0)
        torch.testing.assert_close(got, want, **PARITY[got.dtype])


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_the_encoders_of_p_tuning_are_those_of_peft(kind):
    """The same tensors give the same rows. Source: Liu et al. 2021, section 2.2."""
    from peft import PromptEncoder, PromptEncoderConfig

    config = PromptEncoderConfig(
        num_virtual_tokens=TOKENS, token_dim=24, encoder_hidden_size=9, num_layers=3,
        num_attention_heads=4, num_transformer_submodules=1,
        encoder_reparameterization_type=kind.upper(),
    )  # fmt: skip
    theirs = PromptEncoder(config)
    graph = peftc.apply(
        spec("before", encoder={"kind": kind, "hidden": 9}), zoo.captured("bert", "base")
    )
    reference.randomise(graph)
    [(_, piece)] = reference.placed(graph, "p")
    ours = {n: t for n, t in piece.encoder.state_dict().items()}
    theirs.load_state_dict({
        {"lstm": "lstm_head", "mlp": "mlp_head"}[n.partition(".")[0]] + "." + n.partition(".")[2]: t
        for n, t in ours.items()
    } | {"embedding.weight": piece.embedding})  # fmt: skip
    with torch.no_grad():
        want = theirs(torch.arange(TOKENS)[None])[0]
        torch.testing.assert_close(piece.rows(), want, **PARITY[torch.float32])
    assert want.abs().max() > 1e-3
