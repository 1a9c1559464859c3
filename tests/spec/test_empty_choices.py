"""Choices of layers that choose nothing are refused before any model, and no others are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.spec.layers import ChoosesNothing, Layers

NUMBERS = st.integers(0, 6)
PARTS = st.one_of(
    st.sampled_from(["all", "odd", "even"]),
    NUMBERS.map(str),
    st.tuples(NUMBERS, NUMBERS).map(lambda p: f"{p[0]}-{p[1]}"),
    st.tuples(st.sampled_from(["first", "last"]), NUMBERS).map(lambda p: f"{p[0]} {p[1]}"),
)
CHOICES = st.lists(PARTS, min_size=1, max_size=2).map(", ".join)


def chosen(text, count):
    """The layers of a choice, by its words; None where the stack has too few."""
    found = set()
    for part in text.split(", "):
        every = range(count)
        if part in ("all", "odd", "even"):
            found |= {k for k in every if part == "all" or k % 2 == (part == "odd")}
            continue
        if " " in part:
            end, number = part.split()[0], int(part.split()[1])
            found |= set(range(number)) if end == "first" else set(range(count - number, count))
        else:
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found if found <= set(range(count)) else None


def empty(part):
    """Whether a part of a choice names no layer of any stack."""
    return chosen(part, 50) == set()


@settings(max_examples=300, deadline=None)
@given(CHOICES)
def test_a_choice_is_refused_where_one_of_its_parts_names_no_layer(text):
    if any(map(empty, text.split(", "))):
        with pytest.raises(ChoosesNothing):
            Layers(text)
    else:
        assert any(Layers(text).select(n) for n in range(14, 16))


@settings(max_examples=300, deadline=None)
@given(CHOICES, CHOICES)
def test_layers_without_others_are_refused_where_no_stack_has_any_left(layers, without):
    if any(map(empty, (*layers.split(", "), *without.split(", ")))):
        return
    left = [
        a - b
        for n in range(1, 30)
        if (a := chosen(layers, n)) is not None and (b := chosen(without, n)) is not None
    ]
    insert = {"id": "a", "at": "ffn.out", "layers": layers, "without": without,
              "delta": {"bottleneck": {"dim": 4}}}  # fmt: skip
    spec = {"peftc": 1, "name": "n", "insert": [insert]}
    if any(left):
        peftc.load_spec(spec)
        return
    with pytest.raises(PeftcError, match="E014"):
        peftc.load_spec(spec)
    peftc.load_spec({**spec, "insert": [{**insert, "optional": True}]})


def test_a_spec_whose_layers_were_all_left_out_reads_back():
    """What `peftc apply out --without 0-5` writes is a spec like any other."""
    insert = {"id": "a", "at": "ffn.out", "layers": "2-4", "delta": {"bottleneck": {"dim": 4}}}
    less = peftc.load_spec({"peftc": 1, "name": "n", "insert": [insert]}).without("0-5")
    assert peftc.load_spec(less.to_dict()) == less


@pytest.mark.parametrize(
    ("written", "where"),
    [
        ("at: {module: ' '}\n    delta: {bottleneck: {dim: 4}}", "5:18"),
        ("at: embed.out\n    delta: {prompt: {tokens: 2, init: {text: '  '}}}", "6:46"),
        ("at: attn.kv\n    delta: {prefix: {tokens: 2, init: {text: ' '}}}", "6:46"),
        ("at: ffn.out\n    delta: {bottleneck: {dim: {default: 4, first 0: 2}}}", "6:44"),
        ("at: ffn.out\n    delta: {bottleneck: {dim: 4}}\nexport: {fold: []}", "7:16"),
        ("at: ffn.out\n    delta: {bottleneck: {dim: 4}}\nunfreeze: [{module: ''}]", "7:21"),
    ],
)
def test_other_choices_of_nothing_are_refused_at_the_token(tmp_path, written, where):
    path = tmp_path / "s.yaml"
    path.write_text(f"peftc: 1\nname: n\ninsert:\n  - id: a\n    {written}\n")
    with pytest.raises(PeftcError, match="E014") as caught:
        peftc.load_spec(path)
    assert f"s.yaml:{where}" in str(caught.value)
