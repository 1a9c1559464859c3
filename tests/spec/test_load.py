"""Loading: shipped specs, variables, `use`, and the round trip through the resolved text."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peftc.cli.main import run
from peftc.ground.diagnostics import PeftcError
from peftc.ground.reading import first_bytes
from peftc.spec import Layers, load_spec
from peftc.spec.catalogue import names
from peftc.spec.deltas import all_deltas
from peftc.spec.insertion import ROLES
from peftc.spec.load import resolve
from peftc.spec.parse import parse


@pytest.mark.parametrize("name", names())
def test_a_shipped_spec_loads_and_its_resolved_text_says_the_same(name):
    spec = load_spec(name)
    assert spec.name == name
    assert spec.about
    assert load_spec(yaml.safe_load(spec.to_yaml())) == spec


def test_set_changes_variables_and_expressions_follow():
    spec = load_spec("lora", set={"rank": 4, "alpha": 32})
    assert spec.insert[0].delta.options.rank == 4
    assert spec.insert[0].composition.options.scale == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rnak": 4}, "did you mean `rank`?"),
        ({"rank": "big"}, "`rank` is a number in `lora`, not 'big'"),
    ],
)
def test_set_refuses_what_is_not_there_and_other_types(given, message):
    with pytest.raises(PeftcError) as caught:
        load_spec("lora", set=given)
    assert message in str(caught.value)


def test_use_brings_insertions_under_the_given_names():
    spec = load_spec("mam", set={"dim": 12})
    assert [i.id for i in spec.insert] == ["prefix", "ffn_par"]
    assert spec.insert[1].delta.options.dim == 12
    both = {
        "peftc": 1,
        "name": "both",
        "insert": [{"id": "h", "use": "houlsby", "layers": "first 2"}],
    }
    assert [(i.id, i.layers.written) for i in load_spec(both).insert] == [
        ("h_after_attn", "first 2"),
        ("h_after_ffn", "first 2"),
    ]


def test_tasks_come_with_a_spec_that_is_used():
    using = {
        "peftc": 1,
        "name": "mine",
        "insert": [{"id": "deep", "use": "ptuning2_multitask", "set": {"tokens": 4}}],
    }
    spec = load_spec(using)
    assert list(spec.tasks) == ["ner", "entailment", "qa"]
    assert [(i.id, i.share, i.delta.options.tokens) for i in spec.insert] == [
        ("deep", "per_task", 4)
    ]


def test_defaults_follow_the_delta():
    data = {
        "peftc": 1,
        "name": "d",
        "insert": [
            {"id": "a", "at": "attn.q", "delta": {"low_rank": {"rank": 2}}},
            {"id": "b", "at": "ffn.out", "delta": {"bottleneck": {"dim": 2}}},
            {"id": "c", "at": "attn.k", "delta": "vector"},
            {"id": "d", "at": "attn.k", "delta": "vector", "compose": "add"},
        ],
    }
    found = [
        (i.composition.kind, i.form, i.reads, getattr(i.delta.options, "init", None))
        for i in load_spec(data).insert
    ]
    assert found == [
        ("add", "parallel", "x", "kaiming"),
        ("add", "sequential", "h", "zero_up"),
        ("multiply", None, None, "ones"),
        ("add", None, None, "zeros"),
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("all", (0, 1, 2, 3, 4)),
        ("odd", (1, 3)),
        ("even", (0, 2, 4)),
        ("1-3", (1, 2, 3)),
        ("first 2", (0, 1)),
        ("last 2", (3, 4)),
        (2, (2,)),
        ([4, 0], (4, 0)),
    ],
)
def test_layers(written, expected):
    assert Layers(written).select(5) == expected


@pytest.mark.parametrize("written", ["3-7", "last 6", "first 9", 5, [0, 5]])
def test_layers_that_a_stack_does_not_have(written):
    with pytest.raises(ValueError, match="of a stack of 5 layers"):
        Layers(written).select(5)


def test_every_delta_says_where_it_may_stand():
    for kind, options in all_deltas().items():
        assert options.sites, kind
        assert options.composes, kind
        assert options.formula, kind


words = st.text(string.ascii_letters, min_size=1, max_size=6)
scalars = st.one_of(
    st.integers(-5, 70), st.floats(-2, 2), st.booleans(), st.none(), words, st.sampled_from(ROLES)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


widths = st.integers(1, 64)
steps = st.recursive(
    st.one_of(
        st.fixed_dictionaries(
            {"linear": st.fixed_dictionaries(
                {"out": st.one_of(widths, st.just("same"))},
                optional={"rank": widths, "init": st.sampled_from(["default", "zeros"])},
            )}
        ),
        st.fixed_dictionaries({"act": st.sampled_from(["relu", "gelu", "identity"])}),
        st.fixed_dictionaries({"norm": st.sampled_from(["layer", "rms"])}),
        st.fixed_dictionaries({"dropout": st.floats(0, 0.9)}),
        st.fixed_dictionaries(
            {"scale": st.one_of(st.integers(-3, 3), st.floats(-2, 2), st.just({"init": 0.5}))}
        ),
        st.fixed_dictionaries(
            {"conv1d": st.fixed_dictionaries(
                {"kernel": st.sampled_from([1, 3, 5])}, optional={"groups": widths}
            )}
        ),
    ),
    lambda inner: st.fixed_dictionaries({"residual": st.lists(inner, min_size=1, max_size=3)}),
    max_leaves=6,
)  # fmt: skip


heads = st.one_of(
    st.just("question_answering"),
    st.fixed_dictionaries(
        {"token_classification": st.fixed_dictionaries(
            {"labels": st.one_of(st.integers(2, 9), st.just(["O", "B-x"]))},
            optional={"dropout": st.floats(0, 0.9)},
        )}
    ),
    st.fixed_dictionaries(
        {"sequence_classification": st.fixed_dictionaries(
            {"labels": st.integers(2, 9)},
            optional={"pool": st.sampled_from(["auto", "first", "mean"])},
        )}
    ),
)  # fmt: skip


@st.composite
def valid_specs(draw):
    insertions = []
    for k in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(sorted(all_deltas())))
        size = draw(widths)
        at, delta = {
            "bottleneck": (["attn.out", "ffn.out", "block.out"], {"dim": size}),
            "low_rank": (["attn.q", "ffn.up", "ffn.down"], {"rank": size}),
            "vector": (["attn.k", "ffn.act"], {}),
            "prefix": (["attn.kv", "cross.kv"], {"tokens": size}),
            "prompt": (["embed.out"], {"tokens": size}),
            "dora": (["attn.v", "cross.q"], {"rank": size, "scale": 2}),
            "pipe": (["mixer.out", "ffn.act"], draw(st.lists(steps, min_size=1, max_size=4))),
        }[kind]
        entry = {"id": f"i{k}", "at": draw(st.sampled_from(at)), "delta": {kind: delta}}
        if kind != "prompt" and draw(st.booleans()):
            entry["layers"] = draw(st.sampled_from(["all", "odd", "0-1", "last 1", [0]]))
        if kind in ("bottleneck", "pipe") and draw(st.booleans()):
            composes = ["add", "gate", {"add": {"scale": 2.5}}, {"gate": {"per": "channel"}}]
            entry["compose"] = draw(st.sampled_from(composes))
        insertions.append(entry)
    spec = {"peftc": 1, "name": draw(words), "insert": insertions}
    if draw(st.booleans()):
        named = st.dictionaries(st.sampled_from(["ner", "topic", "qa"]), heads, min_size=1)
        spec["tasks"] = {n: {"head": h} for n, h in draw(named).items()}
        for entry in insertions:
            kind = next(iter(entry["delta"]))
            if all_deltas()[kind].by_task is not None and draw(st.booleans()):
                entry["share"] = draw(st.sampled_from(["per_task", "all_tasks"]))
            if kind == "prefix" and entry.get("share") == "per_task":
                first = next(iter(spec["tasks"]))
                entry["delta"] = {"prefix": {"tokens": "$t"}}
                spec["vars"] = {"t": draw(widths)}
                spec["tasks"][first]["set"] = {"t": spec["vars"]["t"] + 1}
    if draw(st.booleans()):
        merging = [i["id"] for i in insertions if set(i["delta"]) & {"low_rank", "dora", "vector"}]
        spec["export"] = {
            "fold": draw(st.sampled_from(["auto", "none", merging or "auto", ["reparam"]]))
        }
    return spec


@settings(max_examples=1000, deadline=None)
@given(valid_specs())
def test_valid_specs_are_accepted_and_round_trip(data):
    spec = load_spec(data)
    written = parse(spec.to_yaml(), "spec.yaml")  # as it is read from a file
    assert resolve(written, {}, Path()) == spec


@settings(max_examples=2200, deadline=None)
@given(valid_specs(), st.data())
def test_mutated_specs_are_accepted_whole_or_refused_with_a_place(data, draw):
    target = draw.draw(st.sampled_from(["top", "entry", "delta", "tasks"]))
    place = {
        "top": data,
        "entry": data["insert"][0],
        "delta": data["insert"][0]["delta"],
        "tasks": data.setdefault("tasks", {}),
    }[target]
    known = st.sampled_from(sorted(place)) if place else words
    key = draw.draw(st.one_of(words, known))
    place[key] = draw.draw(anything)
    spec, codes = loaded(data)
    assert all(c.startswith("E0") for c in codes)
    assert (spec is None) == bool(codes)
    if spec is not None:
        assert load_spec(spec.to_dict()) == spec


def loaded(data):
    """(spec, no codes), or (None, the codes of its refusal)."""
    try:
        return load_spec(data), []
    except PeftcError as refusal:
        return None, [d.code for d in refusal.diagnostics]


USES = "peftc: 1\nname: n\ninsert:\n  - {id: a, use: %s}\n"
ONE = "peftc: 1\nname: one\ninsert:\n  - {id: a, at: ffn.out, delta: {bottleneck: {dim: 8}}}\n"


@pytest.fixture
def shelf(tmp_path):
    """A folder of specs, and files beside it that are nobody's business."""
    home = tmp_path / "specs"
    (home / "parts").mkdir(parents=True)
    (tmp_path / "secret.yaml").write_text("password: hunter2\n")
    (tmp_path / "outer.yaml").write_text(ONE)
    (home / "inner.yaml").write_text(ONE)
    (home / "parts" / "deep.yaml").write_text(USES % "../inner.yaml")
    (home / "parts" / "escape.yaml").write_text(USES % "../../outer.yaml")
    (home / "link.yaml").symlink_to(tmp_path / "outer.yaml")
    (home / "folder").symlink_to(tmp_path)
    (home / "loop.yaml").symlink_to("loop.yaml")
    os.mkfifo(home / "fifo.yaml")
    return home


@pytest.mark.parametrize(
    "inside", ["inner.yaml", "./parts/../inner.yaml", "parts/deep.yaml", "{home}/inner.yaml"]
)
def test_a_spec_uses_files_of_its_own_folder(shelf, inside):
    (shelf / "mine.yaml").write_text(USES % inside.format(home=shelf))
    (found,) = load_spec(shelf / "mine.yaml").insert
    assert found.delta.kind == "bottleneck"


@pytest.mark.parametrize(
    "outside",
    [
        "../secret.yaml",
        "../outer.yaml",
        "../nothing.yaml",
        "{home}/../secret.yaml",
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/environ",
        "link.yaml",
        "folder/secret.yaml",
        "parts/escape.yaml",
        '"a\\0b.yaml"',
    ],
)
def test_what_a_spec_uses_elsewhere_is_not_looked_at(shelf, outside, monkeypatch):
    (shelf / "mine.yaml").write_text(USES % outside.format(home=shelf))
    looked = []
    monkeypatch.setattr("peftc.spec.parse.first_bytes", lambda p, n: looked.append(p) or read(p, n))
    read = first_bytes
    with pytest.raises(PeftcError) as caught:
        load_spec(shelf / "mine.yaml")
    assert [d.code for d in caught.value.diagnostics] == ["E017"]
    assert "hunter2" not in str(caught.value)
    assert {p.parent for p in looked} <= {shelf, shelf / "parts"}


@pytest.mark.parametrize("name", ["fifo.yaml", "loop.yaml", "parts", "no.yaml", "x" * 5000])
def test_what_is_no_file_of_the_folder_is_refused_and_not_waited_for(shelf, name):
    (shelf / "mine.yaml").write_text(USES % name)
    with pytest.raises(PeftcError, match="E006"):
        load_spec(shelf / "mine.yaml")
    with pytest.raises(PeftcError, match="E006"):
        load_spec(shelf / name)


def test_a_file_that_says_it_is_empty_is_read_no_further_than_a_spec_is_long(tmp_path):
    with pytest.raises(PeftcError, match=r"E012|E001|E006"):
        load_spec("/proc/kallsyms")


def test_with_consent_a_spec_uses_files_anywhere(shelf, capsys):
    (shelf / "mine.yaml").write_text(USES % "parts/escape.yaml")
    mine = str(shelf / "mine.yaml")
    assert load_spec(mine, allow_use_anywhere=True).insert[0].delta.kind == "bottleneck"
    for verb in (["check"], ["specs", "show", "--expanded"], ["specs", "diff", mine]):
        assert run([*verb, mine]) == 2
        assert "E017" in capsys.readouterr().err
        assert run([*verb, mine, "--allow-use-anywhere"]) == 0


def test_a_mapping_uses_files_of_the_working_folder(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    entry = {"id": "a", "use": "parts/deep.yaml"}
    assert load_spec({"peftc": 1, "name": "n", "insert": [entry]}).insert
    entry["use"] = "../outer.yaml"
    with pytest.raises(PeftcError, match="E017"):
        load_spec({"peftc": 1, "name": "n", "insert": [entry]})
