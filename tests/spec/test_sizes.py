"""Sizes by layer: which layer has which, and what is refused."""

from __future__ import annotations

import pytest

from peftc.ground.diagnostics import PeftcError
from peftc.spec import Layers, load_spec
from peftc.spec.sizes import Sizes


def spec(dim):
    return {"peftc": 1, "name": "s", "insert": [
        {"id": "a", "at": "ffn.out", "delta": {"bottleneck": {"dim": dim}}}]}  # fmt: skip


def test_each_layer_has_the_size_of_the_form_that_names_it():
    sizes = Sizes({"default": 64, "last 2": 16, "0": 8, "1, 3": 4})
    assert [sizes.at(k, 7) for k in range(7)] == [8, 4, 64, 4, 64, 16, 16]
    assert sizes.at(None, 0) == 64
    assert Layers("0-1, last 1").select(5) == (0, 1, 4)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({"default": 5, "last 2": 3, "1-2": 4}, "layer 2 is in `last 2` and in `1-2`"),
        ({"last 2": 3}, "no size for layer 0: add `default`"),
        ({"default": 3, "9": 4}, "`layers: 9` of a stack of 4 layers, 0 to 3"),
    ],
)
def test_layers_named_twice_or_never_are_refused(written, text):
    with pytest.raises(ValueError, match="^" + text):
        [Sizes(written).at(k, 4) for k in range(4)]


@pytest.mark.parametrize("dim", [0, -1, 2.5, "8", True, {}, {"default": 0}, {"default": "x"}, [3]])
def test_sizes_are_whole_numbers_above_zero(dim):
    with pytest.raises(PeftcError) as caught:
        load_spec(spec(dim))
    [found] = caught.value.diagnostics
    assert (found.code, found.message) == (
        "E005",
        "`dim` is a whole number above 0, or one by layers: {default: 64, last 4: 16}",
    )


def test_a_key_that_is_no_layers_is_refused_by_name():
    with pytest.raises(PeftcError, match="`defualt` names no layers; they are default, or all,"):
        load_spec(spec({"defualt": 3}))


def test_the_resolved_text_says_the_same():
    made = load_spec(
        {**spec({"default": "$d", "last 4": "$d / 4"}), "vars": {"d": 64}}, set={"d": 32}
    )
    assert made.to_dict()["insert"][0]["delta"] == {
        "bottleneck": {"dim": {"default": 32, "last 4": 8}, "act": "relu", "init": "zero_up",
                       "bias": True, "dropout": 0.0, "norm": "none"}
    }  # fmt: skip
    assert load_spec(made.to_dict()) == made
