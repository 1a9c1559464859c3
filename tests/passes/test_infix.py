"""Infixes: the model reads x, its cache gets the trained rows, and it goes on with y."""

from __future__ import annotations

import functools

import pytest
import reference
import torch
import zoo
from tolerances import PARITY
from transformers import DynamicCache

import peftc
from peftc.ground.diagnostics import PeftcError

TOKENS, HERE = 5, 4
CLOSE = PARITY[torch.float32]


def spec(*others, **options):
    delta = {"prefix": {"tokens": TOKENS, "before": HERE, **options}}
    entry = {"id": "infix", "at": "attn.kv", "delta": delta}
    return {"peftc": 1, "name": "infix", "insert": [entry, *others]}


@functools.cache
def captured(kind, attention):
    if attention == "sdpa":
        return zoo.captured(kind, "causal-lm")
    model = zoo.build(kind, "causal-lm")
    model.set_attn_implementation(attention)
    return zoo.captured_once(model)


def given(model, batch, length):
    """Rows with the token first, inside, last and nowhere; then padding."""
    inputs = zoo.inputs(model, batch, length)
    ids = inputs["input_ids"]
    ids[ids == HERE] = HERE + 1
    for row in range(batch - 1):
        place = (0, 3, int(inputs["attention_mask"][row].sum()) - 1)[row % 3]
        ids[row, place] = HERE
        if place == 3:
            ids[row, 5] = HERE  # a second one changes nothing
    return inputs


def in_two_steps(model, ids, pieces, positions):
    """The logits of one row: x, then the rows in the cache, then y at its positions."""
    at = (ids == HERE).nonzero()
    if not len(at):
        return model(ids[None]).logits[0]
    n = int(at[0])
    past = DynamicCache()
    first = [model(ids[None, :n], past_key_values=past, use_cache=True).logits[0]] if n else []
    past = DynamicCache(
        [
            tuple(
                torch.cat([*([own[0]] if n else []), t.detach()], 1)[None]
                for own, t in zip(cached(past, k), (piece.key, piece.value), strict=True)
            )
            for k, piece in enumerate(pieces)
        ]
    )
    start = n + (TOKENS if positions == "shift" else 0)
    second = model(
        ids[None, n:],
        past_key_values=past,
        position_ids=torch.arange(start, start + len(ids) - n)[None],
    ).logits[0]
    return torch.cat([*first, second])


def cached(past, k):
    """The keys and values of a layer, if it has read anything."""
    return (past.layers[k].keys, past.layers[k].values) if past.layers else (None, None)


@pytest.mark.parametrize(
    ("kind", "attention", "positions"),
    [("gpt2", "sdpa", "shift"), ("llama", "sdpa", "shift"), ("llama", "eager", "keep")],
)
def test_an_infix_equals_the_model_going_on_from_a_cache(kind, attention, positions):
    model = zoo.model(kind, "causal-lm")
    graph = peftc.apply(spec(positions=positions), captured(kind, attention))
    reference.randomise(graph)
    pieces = [p for _, p in reference.placed(graph, "infix")]
    for batch, length in ((5, 9), (2, 13)):
        inputs = given(model, batch, length)
        with torch.no_grad():
            got = graph(**inputs).logits
            plain = model(**inputs).logits
            for row, ids in enumerate(inputs["input_ids"]):
                real = int(inputs["attention_mask"][row].sum())
                want = in_two_steps(model, ids[:real], pieces, positions)
                torch.testing.assert_close(got[row, :real], want, **CLOSE)
                moved = (got - plain)[row, :real].abs().amax(-1) > 1e-3
                assert moved.equal((ids[:real] == HERE).cumsum(0) > 0)


@pytest.mark.parametrize(("kind", "task"), [("bert", "base"), ("t5", "seq2seq-lm")])
def test_an_infix_before_the_first_token_is_a_prefix(kind, task):
    """Also where queries see what comes later, and where relative biases say how far keys are."""
    model, program = zoo.model(kind, task), zoo.captured(kind, task)
    infix, prefix = peftc.apply(spec(), program), peftc.apply(spec(before=None), program)
    reference.randomise(infix)
    reference.randomise(prefix)
    inputs = zoo.inputs(model, 3, 9)
    outputs = []
    for first in (HERE, HERE + 1):
        for name in ("input_ids", "decoder_input_ids"):
            if name in inputs:
                inputs[name][inputs[name] == HERE] = HERE + 1
                inputs[name][:, 0] = first
        with torch.no_grad():
            pair = [reference.main_output(graph(**inputs)) for graph in (infix, prefix)]
            outputs.append((*pair, reference.main_output(model(**inputs))))
    (a, b, _), (none, seen, plain) = outputs
    torch.testing.assert_close(a, b, **CLOSE)
    torch.testing.assert_close(none, plain, **CLOSE)
    assert (seen - plain).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [5, 11])
def test_an_infix_behind_an_open_gate_is_an_infix(tokens, attention):
    plain, gated = spec(tokens=tokens), spec(tokens=tokens)
    gated["insert"][0]["compose"] = {"attend": {"gate": {"reads": "x"}}}
    plain, gated = (peftc.apply(s, captured("llama", attention)) for s in (plain, gated))
    reference.randomise(plain)
    own = dict(plain.peft_parameters())
    for name, parameter in gated.peft_parameters():
        parameter.data = own[name].data if name in own else torch.full_like(parameter, 0.0)
        if name.endswith("_gate.linear.bias"):
            parameter.data += 100
    inputs = given(zoo.model("llama", "causal-lm"), 4, 9)
    with torch.no_grad():
        torch.testing.assert_close(gated(**inputs).logits, plain(**inputs).logits, **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_prefixes_at_one_attention_are_both_seen(attention):
    """As one cache that holds both; real tokens count on behind all of them."""
    model = zoo.model("llama", "causal-lm")
    entries = [
        {"id": i, "at": "attn.kv", "delta": {"prefix": {"tokens": n}}}
        for i, n in (("a", 2), ("b", 3))
    ]
    two = {"peftc": 1, "name": "two", "insert": entries}
    graph = peftc.apply(two, captured("llama", attention))
    reference.randomise(graph)
    pieces = [[p for _, p in reference.placed(graph, i)] for i in ("a", "b")]
    inputs = zoo.inputs(model, 3, 9)
    real = inputs["attention_mask"]
    past = DynamicCache(
        [
            tuple(torch.cat(pair, 1).detach()[None].expand(3, -1, -1, -1) for pair in pairs)
            for pairs in (
                ((a.key, b.key), (a.value, b.value)) for a, b in zip(*pieces, strict=True)
            )
        ]
    )
    longer = torch.cat([torch.ones(3, 5, dtype=torch.long), real], 1)
    with torch.no_grad():
        want = model(inputs["input_ids"], attention_mask=longer, past_key_values=past).logits
        got = graph(**inputs).logits
    torch.testing.assert_close(zoo.real_rows(got, real), zoo.real_rows(want, real), **CLOSE)


def test_a_prefix_a_prompt_and_an_infix_count_on_from_one_another():
    """As the model with the prefix in its cache, the prompt as embeddings and the infix behind."""
    model = zoo.model("gpt2", "causal-lm")
    prefix = {"id": "pre", "at": "attn.kv", "delta": {"prefix": {"tokens": 2}}}
    prompt = {"id": "soft", "at": "embed.out", "delta": {"prompt": {"tokens": 3}}}
    graph = peftc.apply(spec(prefix, prompt), zoo.captured("gpt2", "causal-lm"))
    reference.randomise(graph)
    ids = given(model, 3, 9)["input_ids"][1]
    parts = [[p for _, p in reference.placed(graph, name)] for name in ("infix", "pre", "soft")]
    infix, front, [rows] = parts
    past = DynamicCache([(p.key.detach()[None], p.value.detach()[None]) for p in front])
    embeds = torch.cat([rows.rows().detach(), model.get_input_embeddings()(ids[:3])])
    with torch.no_grad():
        first = model(inputs_embeds=embeds[None], past_key_values=past, use_cache=True).logits
        own = [
            tuple(
                torch.cat([a, b.detach()[None]], 2)
                for a, b in ((x.keys, p.key), (x.values, p.value))
            )
            for x, p in zip(past.layers, infix, strict=True)
        ]
        second = model(ids[None, 3:], past_key_values=DynamicCache(own)).logits
        got = graph(input_ids=ids[None]).logits
    torch.testing.assert_close(got, torch.cat([first[:, 3:], second], 1), **CLOSE)


def test_the_token_is_looked_for_once_a_mask_and_moves_what_is_behind_it():
    graph = peftc.apply(spec(), zoo.captured("gpt2", "causal-lm"))
    reports = graph.meta["peftc.applied"].reports
    inserted, shifted = (
        [t for t in r.difference if t[0] == "+" and "peft" not in t] for r in reports
    )
    assert [sum(f"aten.{op}" in t for t in inserted) for op in ("cumsum", "logical_and")] == [1, 1]
    moved = [t.split(" : ")[0] for t in shifted if "mul" in t or "add" in t]
    assert moved == [
        "+%mul_tensor = aten.mul.Tensor(%_to_copy_default_3, 5)",
        "+%add_tensor = aten.add.Tensor(%unsqueeze, %mul_tensor)",
        "+%embedding_1 = aten.embedding(%transformer_wpe_weight, %add_tensor)",
    ]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mask": "cached"}, "an infix has `mask: open`"),
        ({"before": -1}, "greater than or equal to 0"),
    ],
)
def test_what_is_no_infix_is_refused(options, why):
    with pytest.raises(PeftcError, match=why):
        peftc.load_spec(spec(**options))


def test_peft_has_no_infix(tmp_path):
    graph = peftc.apply(spec(), zoo.captured("llama", "causal-lm"))
    with pytest.raises(PeftcError, match=r"E408.*in front of all tokens, not of token 4"):
        peftc.export(graph, "peft", tmp_path / "out")
