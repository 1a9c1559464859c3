"""Classifiers with an encoder and a decoder: called with the text alone, as transformers has it."""

from __future__ import annotations

import functools

import peft_cases
import pytest
import reference
import torch
from tolerances import PARITY
from transformers import MBartConfig, MBartForSequenceClassification

import peftc
from peftc.capture import capture
from peftc.dataflow import find_sites
from peftc.ground.diagnostics import PeftcError

CLOSE = PARITY[torch.float32]
TOKENS = 5
SHAPES = [(3, 9), (1, 14)]
KINDS = ["t5", "bart"]


@functools.cache
def model_of(kind, task="SEQ_CLS"):
    return peft_cases.build(kind, task)


def graph_of(kind, task="SEQ_CLS"):
    return peft_cases.captured(kind, task)


def base_of(model):
    return model.transformer if model.config.model_type == "t5" else model.model


def shifted(ids, start):
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)


def last_end(ids, end):
    places = torch.arange(ids.shape[1]) * (ids == end)
    return places.argmax(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["SEQ_CLS", "QUESTION_ANS"])
def test_the_graph_takes_the_text_alone_and_answers_like_the_model(kind, task):
    model, graph = model_of(kind, task), graph_of(kind, task)
    assert [i.name for i in graph.signature.inputs] == ["input_ids", "attention_mask"]
    for shape in SHAPES:
        inputs = peft_cases.inputs(model, *shape)
        labels = {"labels": torch.arange(shape[0])}
        if task == "QUESTION_ANS":
            labels = {n: torch.arange(shape[0]) for n in ("start_positions", "end_positions")}
        with torch.no_grad():
            got, want = graph(**inputs, **labels), model(**inputs, **labels, use_cache=False)
        for name in ("loss", "logits", "start_logits", "end_logits"):
            assert (name in got) == (name in want)
            if name in want:
                torch.testing.assert_close(got[name], want[name], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_end_marks_the_last_is_read_row_by_row(kind):
    model, graph = model_of(kind), graph_of(kind)
    end = model.config.eos_token_id
    ids = torch.randint(4, 90, (3, 9), generator=torch.Generator().manual_seed(3))
    ids[0, [2, 5, 8]] = ids[1, 4] = ids[2, 0] = ids[2, 6] = end
    mask = torch.ones_like(ids)
    with torch.no_grad():
        got = graph(input_ids=ids, attention_mask=mask).logits
        rows = zip(ids.split(1), mask.split(1), strict=True)  # the model takes as many in each row
        want = torch.cat([model(input_ids=i, attention_mask=m).logits for i, m in rows])
    torch.testing.assert_close(got, want, **CLOSE)


def test_ids_for_the_decoder_are_refused():
    ids = torch.tensor([[5, 6, 1]])
    with pytest.raises(PeftcError) as caught:
        graph_of("t5")(input_ids=ids, decoder_input_ids=ids)
    assert str(caught.value) == (
        "error[E204]: the graph cannot be called with these inputs; unknown: decoder_input_ids\n"
        "  = help: it takes: input_ids, attention_mask"
    )


def test_what_the_models_own_code_makes_of_the_text_is_followed():
    """mBART decodes from the language mark, each row's last token that is no padding."""
    torch.manual_seed(0)
    config = MBartConfig(
        vocab_size=83, d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=44, num_labels=5,
        max_position_embeddings=64,
    )  # fmt: skip
    model = MBartForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    graph = capture(model)
    for batch in (3, 1):
        ids = torch.randint(4, 83, (batch, 9), generator=torch.Generator().manual_seed(batch))
        ids[:, 6], mask = 2, torch.ones_like(ids)
        ids[1:, 8], mask[1:, 8] = 1, 0
        with torch.no_grad():
            got, want = (m(input_ids=ids, attention_mask=mask).logits for m in (graph, model))
            ids[:, 7] = 9
            other = graph(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(got, want, **CLOSE)
        assert (got - other).abs().min(1).values.max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_stacks_are_told_apart(kind):
    layers = {"t5": {"encoder": 4, "decoder": 3}, "bart": {"encoder": 4, "decoder": 4}}[kind]
    sites = find_sites(graph_of(kind))
    assert sites.layers == layers
    assert [e.site.name for e in sites.embeddings] == ["encoder_embed_out", "decoder_embed_out"]
    if kind == "bart":  # T5 has relative positions, which nothing shifts
        assert [p.stack for p in sites.positions] == ["encoder", "decoder"]


def prompts(*stacks, **options):
    delta = {"prompt": {"tokens": TOKENS, **options}}
    at = "embed.out"
    entries = [{"id": s, "at": at, "stack": s, "delta": delta} for s in stacks]
    return {"peftc": 1, "name": "prompts", "insert": entries}


def prompted(model, inputs, rows):
    """The base model on embeddings with rows in front, its head at the last end mark."""
    base, config = base_of(model), model.config
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    encoder = base.encoder.embed_tokens(ids)
    decoder = base.decoder.embed_tokens(shifted(ids, config.decoder_start_token_id))
    batch = len(ids)
    if "encoder" in rows:
        encoder = torch.cat([rows["encoder"].expand(batch, -1, -1), encoder], 1)
        mask = torch.cat([torch.ones(batch, TOKENS, dtype=mask.dtype), mask], 1)
    if "decoder" in rows:
        decoder = torch.cat([rows["decoder"].expand(batch, -1, -1), decoder], 1)
    given = {"inputs_embeds": encoder, "attention_mask": mask, "decoder_inputs_embeds": decoder}
    hidden = base(**given, use_cache=False)[0]
    hidden = hidden[:, TOKENS if "decoder" in rows else 0 :]
    picked = hidden[torch.arange(batch), last_end(ids, config.eos_token_id)]
    return model.classification_head(picked)


@pytest.mark.parametrize("stacks", [("encoder",), ("decoder",), ("encoder", "decoder")])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_before_either_stack_equal_inputs_embeds(kind, stacks):
    model = model_of(kind)
    graph = peftc.apply(prompts(*stacks), graph_of(kind))
    reference.randomise(graph)
    rows = {s: p.detach() for s in stacks for n, p in graph.peft_parameters() if f".{s}." in n}
    assert len(rows) == len(stacks)
    for shape in SHAPES:
        inputs = peft_cases.inputs(model, *shape)
        with torch.no_grad():
            got = graph(**inputs)
            want, plain = prompted(model, inputs, rows), model(**inputs)
        torch.testing.assert_close(got.logits, want, **CLOSE)
        assert got.encoder_last_hidden_state.shape == plain.encoder_last_hidden_state.shape
        assert (got.logits - plain.logits).abs().max() > 1e-3


def test_a_prompt_that_the_head_would_see_is_refused():
    one = prompts("decoder")
    one["insert"][0]["compose"] = {"prepend": {"trim": False}}
    with pytest.raises(PeftcError) as caught:
        peftc.apply(one, graph_of("bart"))
    assert "error[E110]: the head picks tokens by the ids as they are given" in str(caught.value)
    assert "= help: trim: true" in str(caught.value)


WHERE = {
    "t5": ("{}.block.{}.layer.{}.SelfAttention", "{}.block.{}.layer.{}.EncDecAttention"),
    "bart": ("{}.layers.{}.self_attn", "{}.layers.{}.encoder_attn"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_at_all_three_attentions(kind):
    model = model_of(kind)
    spec = peftc.load_spec("prefix_seq2seq", set={"hidden": 7}).to_dict()
    for entry in spec["insert"]:
        entry["delta"]["prefix"] |= {"positions": "keep", "reparam": None}
    graph = peftc.apply(spec, graph_of(kind))
    reference.randomise(graph)
    of = {}
    for name in ("encoder", "decoder", "cross"):
        for site, piece in reference.placed(graph, name):
            stack = "encoder" if name == "encoder" else "decoder"
            cross = name == "cross"
            path = WHERE[kind][cross].format(stack, site["layer"], int(cross))
            of[base_of(model).get_submodule(path)] = (piece.key, piece.value)
    assert len(of) == (10 if kind == "t5" else 12)
    for shape in SHAPES:
        inputs = peft_cases.inputs(model, *shape)
        with reference.seeing(model, of), torch.no_grad():
            want = model(**inputs, use_cache=False).logits
        with torch.no_grad():
            got, plain = graph(**inputs).logits, model(**inputs).logits
        torch.testing.assert_close(got, want, **CLOSE)
        assert (got - plain).abs().max() > 1e-3


def test_a_prefix_starts_from_words_on_both_sides():
    """Keys and values of the decoder are those of the words themselves, not of them shifted."""
    ids = [5, 9, 11]
    entry = {"id": "p", "at": "attn.kv", "stack": "decoder", "layers": 0}
    entry["delta"] = {"prefix": {"tokens": 3, "init": {"ids": ids}}}
    graph = peftc.apply({"peftc": 1, "name": "p", "insert": [entry]}, graph_of("t5"))
    model = model_of("t5").transformer.decoder
    block = model.block[0].layer[0]
    with torch.no_grad():
        x = block.layer_norm(model.embed_tokens(torch.tensor([ids])))
        want = block.SelfAttention.v(x).view(3, 4, 10).transpose(0, 1)
    [piece] = [p for _, p in reference.placed(graph, "p")]
    torch.testing.assert_close(piece.value.detach(), want, **CLOSE)
