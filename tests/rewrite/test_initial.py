"""First values that come from the model: equal to its own embeddings, keys and values."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace

import pytest
import reference
import torch
import zoo
from safetensors.torch import load_file
from tolerances import PARITY
from transformers import AutoTokenizer, DynamicCache

import peftc
from peftc.artifact.lock import TENSORS
from peftc.cli.main import run
from peftc.ground.diagnostics import PeftcError
from peftc.rewrite.tokens import Words, plain_token

IDS = [5, 9, 7, 12, 6, 11, 8]
CLOSE = PARITY[torch.float32]


def prompt(**options):
    delta = {"prompt": {"tokens": 6, **options}}
    return {"peftc": 1, "name": "p", "insert": [{"id": "p", "at": "embed.out", "delta": delta}]}


def prefix(at="attn.kv", tokens=5, **options):
    delta = {"prefix": {"tokens": tokens, **options}}
    return {"peftc": 1, "name": "p", "insert": [{"id": "p", "at": at, "delta": delta}]}


def rows(graph):
    [site] = [m for n, m in graph.named_modules() if n.endswith("embed_out")]
    return site.rows().detach()


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.mark.parametrize("network", [
    {}, {"reparam": {"hidden": 9}}, {"encoder": {"kind": "lstm", "hidden": 9}},
    {"encoder": {"kind": "mlp", "hidden": 19}}], ids=str)  # fmt: skip
def test_a_prompt_from_tokens_is_their_embeddings_behind_any_network(network):
    table = zoo.model("bert", "base").get_input_embeddings().weight.detach()
    start = {"ids": IDS[:4]}
    graph = peftc.apply(prompt(init=start, **network), zoo.captured("bert", "base"))
    torch.testing.assert_close(rows(graph), table[[5, 9, 7, 12, 5, 9]], **CLOSE)
    graph = peftc.apply(prompt(init={"ids": IDS}), zoo.captured("bert", "base"))
    assert torch.equal(rows(graph), table[IDS[:6]]), "cut to the prompt's length"


def test_text_is_read_by_the_tokenizer_beside_the_model(model_folder, tokenizer):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(model_folder).eval()
    ids = tokenizer("the red cat", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    want = model.get_input_embeddings().weight.detach()[ids + ids]
    spec = prompt(init={"text": "the red cat"})
    assert torch.equal(rows(peftc.apply(spec, model)), want)
    program = zoo.captured("bert", "sequence-classification")
    assert torch.equal(rows(peftc.apply(spec, program, tokenizer=tokenizer)), want)
    with pytest.raises(PeftcError, match=r"E083.*the base model has no tokenizer"):
        peftc.apply(spec, program)
    with pytest.raises(PeftcError, match=r"E014.*`text` is blank, so it names nothing"):
        peftc.apply(prompt(init={"text": " "}), program, tokenizer=tokenizer)


def test_labels_start_as_their_words_averaged_and_the_rest_as_frequent_words(tokenizer):
    program = zoo.captured("bert", "sequence-classification").clone()
    config = copy.deepcopy(program.signature.config)
    config.id2label = {0: "very good", 1: "bad", 2: "not", 3: "it", 4: "was"}
    program.signature = replace(program.signature, config=config)
    model = zoo.model("bert", "sequence-classification")
    table = model.get_input_embeddings().weight.detach()
    graph = peftc.apply(prompt(init="labels"), program, tokenizer=tokenizer)
    vocabulary = tokenizer.get_vocab()
    found = rows(graph)
    mean = (table[vocabulary["very"]] + table[vocabulary["good"]]) / 2
    torch.testing.assert_close(found[0], mean, **CLOSE)
    for k, word in enumerate(("bad", "not", "it", "was"), 1):
        assert torch.equal(found[k], table[vocabulary[word]])
    [rest] = torch.nonzero((found[5] == table).all(-1)).flatten().tolist()
    assert 4 <= rest < len(tokenizer)


def test_frequent_words_are_the_first_of_the_vocabulary_that_are_words(tokenizer):
    class Marked:
        all_special_ids = (0, 3)

        def __len__(self):
            return 9

        def convert_ids_to_tokens(self, ids):
            return ["<s>", "a", "[unused1]", "</s>", "<0x0A>", "b", "<extra_id_0>", "c", "d"]

    config = zoo.model("gpt2", "causal-lm").config  # 0, 1, 2 are its special ids
    assert Words(Marked()).frequent(2, 99, config) == [5, 7]
    assert Words(Marked()).frequent(50, 8, config) == [5, 7]
    assert Words().frequent(4, 99, config) == [3, 4, 5, 6]
    table = zoo.model("gpt2", "causal-lm").get_input_embeddings().weight.detach()
    program = zoo.captured("gpt2", "causal-lm")
    many = [rows(peftc.apply(prompt(init={"vocab": 3}), program, seed=s)) for s in range(4)]
    drawn = {torch.nonzero((r == table).all(-1)).item() for m in many for r in m}
    assert drawn == {3, 4, 5}
    assert not torch.equal(many[0], many[1])
    assert peftc.load_spec(prompt(init="vocab")).insert[0].delta.options.init.vocab == 5000


@functools.cache
def written_out(kind):
    """The capture of a model whose attention is written out."""
    model = zoo.build(kind, "causal-lm")
    model.set_attn_implementation("eager")
    return zoo.captured_once(model)


@pytest.mark.parametrize("network", [{}, {"reparam": {"hidden": 8}}], ids=["plain", "mlp"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prefix_from_words_is_the_model_having_read_them(kind, attention, network):
    """Its keys and values are those of the cache, before heads are repeated; so are the logits."""
    model = zoo.model(kind, "causal-lm")
    program = zoo.captured(kind, "causal-lm") if attention == "sdpa" else written_out(kind)
    graph = peftc.apply(prefix(init={"ids": IDS}, **network), program)
    words = torch.tensor([IDS[:5]])
    cache = DynamicCache()
    with torch.no_grad():
        model(words, past_key_values=cache, use_cache=True)
        if network:
            parts = graph.get_submodule("peft.p.reparam")()
            pairs = list(zip(parts[::2], parts[1::2], strict=True))
        else:
            pairs = [(p.key.detach(), p.value.detach()) for _, p in reference.placed(graph, "p")]
        for (key, value), layer in zip(pairs, cache.layers, strict=True):
            torch.testing.assert_close(key, layer.keys[0], **CLOSE)
            torch.testing.assert_close(value, layer.values[0], **CLOSE)
        inputs = zoo.inputs(model, 4, 9)
        real = inputs["attention_mask"]
        whole = {
            "input_ids": torch.cat([words.expand(4, -1), inputs["input_ids"]], 1),
            "attention_mask": torch.cat([torch.ones(4, 5, dtype=torch.long), real], 1),
        }
        want, got = model(**whole).logits[:, 5:], graph(**inputs).logits
    torch.testing.assert_close(zoo.real_rows(got, real), zoo.real_rows(want, real), **CLOSE)


def test_an_encoder_decoder_model_reads_the_words_on_both_sides():
    model = zoo.model("t5", "seq2seq-lm")
    program = zoo.captured("t5", "seq2seq-lm")
    spec = prefix(["attn.kv", "cross.kv"], init={"ids": IDS})
    graph = peftc.apply(spec, program)
    words = torch.tensor([IDS[:5]])
    with torch.no_grad():
        output = model(input_ids=words, decoder_input_ids=words, use_cache=True)
        first = model.encoder.block[0].layer[0]
        own = first.layer_norm(model.shared(words))
        want = first.SelfAttention.v(own).reshape(5, 4, 10).transpose(0, 1)
    pieces = {s["name"]: p for s, p in reference.placed(graph, "p")}
    for role, cache in (
        ("attn_kv", output.past_key_values.self_attention_cache),
        ("cross_kv", output.past_key_values.cross_attention_cache),
    ):
        for k, layer in enumerate(cache.layers):
            piece = pieces[f"decoder_layer{k}_{role}"]
            torch.testing.assert_close(piece.key, layer.keys[0], **CLOSE)
            torch.testing.assert_close(piece.value, layer.values[0], **CLOSE)
    torch.testing.assert_close(pieces["encoder_layer0_attn_kv"].value, want, **CLOSE)


def test_an_artifact_needs_no_tokenizer_and_plans_neither(model_folder, tmp_path, monkeypatch):
    spec = tmp_path / "words.yaml"
    spec.write_text(
        "peftc: 1\nname: w\ninsert:\n"
        "  - {id: p, at: embed.out, delta: {prompt: {tokens: 6, init: labels}}}\n"
        "  - {id: k, at: attn.kv, delta: {prefix: {tokens: 3, init: {text: a red dog}}}}\n"
    )
    out = tmp_path / "out"
    args = ["--task", "sequence-classification", "--labels", "good,bad,it,not,was", "-o", str(out)]
    assert run(["apply", str(spec), str(model_folder), *args]) == 0
    stored = load_file(out / TENSORS)
    assert stored["peft.k.layer0_attn_kv.key"].std() > 0.1

    def refuse(*_args):
        raise AssertionError("no tokenizer is needed")

    monkeypatch.setattr("peftc.rewrite.tokens.load_tokenizer", refuse)
    again = peftc.load(out)
    for name, tensor in stored.items():
        assert torch.equal(again.get_parameter(name), tensor)
    assert json.loads((out / "peftc.lock.json").read_text())["seed"] == 0


def test_training_goes_on_before_the_fold_from_what_was_saved(tmp_path):
    """The artifact holds the MLP, so that steps after loading are the steps of one run."""
    model = zoo.model("llama", "causal-lm")
    program = zoo.captured("llama", "causal-lm")
    graph = peftc.apply(prefix(reparam={"hidden": 7}, init={"ids": IDS}), program)
    inputs = zoo.inputs(model, 4, 9)
    inputs["labels"] = inputs["input_ids"]

    def step(one):
        one.zero_grad()
        one(**inputs).loss.backward()
        with torch.no_grad():
            for parameter in peftc.trainable(one).values():
                parameter -= 0.5 * parameter.grad

    step(graph)
    peftc.save(graph, tmp_path / "out")
    again = peftc.load(tmp_path / "out", program)
    step(graph)
    step(again)
    moved = dict(graph.peft_parameters())
    assert set(moved) == {n for n, _ in again.peft_parameters()}
    assert any("reparam.hidden" in n for n in moved)
    assert all(torch.equal(moved[n], p) for n, p in again.peft_parameters())
    from peftc.rewrite.pipeline import fold

    folded, _ = fold(again)
    del inputs["labels"]
    with torch.no_grad():
        torch.testing.assert_close(
            folded(**inputs).logits, again(**inputs).logits, rtol=0, atol=1e-6
        )


def test_a_token_of_several_that_end_a_text_is_not_plain():
    config = copy.deepcopy(zoo.model("llama", "base").config)
    config.eos_token_id = [2, 3]
    assert plain_token(config, config.vocab_size) == 4
