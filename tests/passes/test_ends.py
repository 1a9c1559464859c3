"""Insertions at a module's input, at embeddings, with biases; prompts as with inputs_embeds."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import reference
import torch
import zoo
from tolerances import EXPORT, PARITY

import peftc
from peftc.rewrite.pipeline import fold

SHAPES = [(3, 8), (2, 13)]


def spec(*at, delta, **more):
    return {
        "peftc": 1,
        "name": "ends",
        "insert": [{"id": "here", "at": list(at), "delta": delta, **more}],
    }


def same(graph, reference_output, inputs):
    with torch.no_grad():
        got, want = reference.main_output(graph(**inputs)), reference_output(inputs)
    torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_a_vector_at_the_input_of_modules_is_theirs_alone():
    model = zoo.model("bert")
    modules = ["encoder.layer.*.output.dense", "encoder.layer.*.attention.self.query"]
    modules.append("encoder.layer.*.attention.self.key")  # reads what the query reads
    at = [{"module": m, "end": "input"} for m in modules]
    graph = peftc.apply(spec(*at, delta={"vector": {}}), zoo.captured("bert"))
    reference.randomise(graph)
    assert len(reference.placed(graph, "here")) == 12  # output.dense of both blocks
    with ExitStack() as stack:
        for site, piece in reference.placed(graph, "here"):
            handle = model.get_submodule(site["module"]).register_forward_pre_hook(
                lambda _m, args, vector=piece.l: (args[0] * vector, *args[1:])
            )
            stack.callback(handle.remove)
        for shape in SHAPES:
            inputs = zoo.inputs(model, *shape)
            same(graph, lambda x: model(**x).last_hidden_state, inputs)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_low_rank_update_of_the_embedding_and_of_the_head(kind):
    model = zoo.model(kind, "causal-lm")
    head = {"module": "lm_head"}
    graph = peftc.apply(
        spec("embed.out", head, delta={"low_rank": {"rank": 3}}, compose={"add": {"scale": 2}}),
        zoo.captured(kind, "causal-lm"),
    )
    reference.randomise(graph)
    (_, table), (_, vocabulary) = reference.placed(graph, "here")
    assert table.A.shape == (3, model.config.vocab_size)
    embeds = model.get_input_embeddings()

    def want(inputs):
        ids = inputs["input_ids"]
        h = embeds(ids) + 2 * (table.A.T[ids] @ table.B.T)
        last = model.base_model(
            inputs_embeds=h, attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        return model.lm_head(last) + 2 * (last @ vocabulary.A.T @ vocabulary.B.T)

    for shape in SHAPES:
        same(graph, want, zoo.inputs(model, *shape))


@pytest.mark.parametrize(("kind", "folds"), [("bert", True), ("llama", False)])
def test_a_bias_of_the_update_is_scaled_and_folds_where_the_linear_has_one(kind, folds):
    """Llama's projections have no bias: the update stays what it is."""
    options = {"low_rank": {"rank": 3, "bias": True}}
    graph = peftc.apply(
        spec("attn.q", delta=options, compose={"add": {"scale": 2}}), zoo.captured(kind)
    )
    reference.randomise(graph)
    model = zoo.model(kind)
    changes = [
        (s, lambda x, h, p=p: h + 2 * (x @ p.A.T @ p.B.T + p.b))
        for s, p in reference.placed(graph, "here")
    ]
    folded, _ = fold(graph)
    assert bool(dict(folded.peft_parameters())) is not folds
    inputs = zoo.inputs(model)
    with reference.changed(model, kind, changes):
        same(graph, lambda x: model(**x).last_hidden_state, inputs)
    with torch.no_grad():
        a, b = (reference.main_output(g(**inputs)) for g in (graph, folded))
    torch.testing.assert_close(a, b, **EXPORT[a.dtype])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_padding_the_last_token_is_the_last_of_all(kind):
    """As with inputs_embeds: a classifier that looks for its last token finds the last position."""
    model = zoo.model(kind, "sequence-classification")
    graph = peftc.apply(
        spec(
            "embed.out",
            delta={"prompt": {"tokens": 3}},
            compose={"prepend": {"trim": False, "padding": "none"}},
        ),
        zoo.captured(kind, "sequence-classification"),
    )
    (_, piece) = reference.placed(graph, "here")[0]

    def want(inputs):
        h = model.get_input_embeddings()(inputs["input_ids"])
        h = torch.cat([piece.embedding.expand(len(h), -1, -1), h], 1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (3, 0), value=1)
        return model(inputs_embeds=h, attention_mask=mask).logits

    for shape in SHAPES:
        same(graph, want, zoo.inputs(model, *shape))


def test_parameters_are_unfrozen_by_name():
    graph = peftc.apply(
        {
            "peftc": 1,
            "name": "some",
            "insert": [],
            "unfreeze": [{"parameter": "encoder.layer.*.attention.self.query.bias"}],
        },
        zoo.captured("bert"),
    )
    assert list(peftc.trainable(graph)) == [
        f"encoder.layer.{i}.attention.self.query.bias" for i in range(3)
    ]
