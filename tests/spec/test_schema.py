"""The JSON schema for editors: accepts what loads, refuses what does not, describes every key."""

from __future__ import annotations

import json

import jsonschema
import pytest

from peftc.cli.main import run
from peftc.spec import load_spec
from peftc.spec.catalogue import names, path_of
from peftc.spec.json_schema import MODELINE, json_schema, schema_path
from peftc.spec.parse import parse

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
RIGHT = {"peftc": 1, "name": "x", "insert": [
    {"id": "a", "at": "attn.out", "delta": {"bottleneck": {"dim": 3}}}]}  # fmt: skip


def test_the_shipped_file_is_current():
    assert json.loads(schema_path().read_text()) == json_schema()


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("name", names())
def test_every_shipped_spec_is_accepted_as_written_and_expanded(name):
    VALIDATOR.validate(parse(path_of(name).read_text(), name).data)
    VALIDATOR.validate(load_spec(name).to_dict())


def changed(**entry):
    """A right spec with its one insertion changed."""
    return {**RIGHT, "insert": [{**RIGHT["insert"][0], **entry}]}


@pytest.mark.parametrize(
    "wrong",
    [
        {**RIGHT, "nmae": "x"},
        {**RIGHT, "peftc": 2},
        {"peftc": 1, "insert": []},
        changed(at="atn.out"),
        changed(at=["attn.q", "attn.w"]),
        changed(at={"modul": "*"}),
        changed(laers="odd"),
        changed(layers="some"),
        changed(stack="middle"),
        changed(form="serial"),
        changed(delta={"bottleneck": {"dmi": 3}}),
        changed(delta={"bottleneck": {"dim": "3"}}),
        changed(delta={"bottleneck": {"dim": 0}}),
        changed(delta={"bottleneck": {"dim": 3, "act": "swish"}}),
        changed(delta={"bottleneck": {"dim": 3}, "vector": {}}),
        changed(delta={}),
        changed(delta={"pipe": []}),
        changed(delta={"pipe": [{"linaer": {"out": 3}}]}),
        changed(delta={"pipe": [{"conv1d": {"kernel": 0}}]}),
        changed(compose={"add": {"sclae": 3}}),
        changed(compose="sum"),
        {**RIGHT, "unfreeze": [{"rôle": "norm"}]},
        {**RIGHT, "expect": {"site": 3}},
        {**RIGHT, "export": {"fold": "all"}},
        {**RIGHT, "insert": [{"id": "a", "use": "lora", "sets": {"rank": 3}}]},
    ],
)
def test_wrong_keys_and_values_are_refused(wrong):
    assert VALIDATOR.is_valid(RIGHT)
    assert not VALIDATOR.is_valid(wrong)


def test_every_key_is_described():
    schema = json_schema()
    lacking = []
    for name, definition in [("spec", schema), *schema["$defs"].items()]:
        for branch in [definition, *definition.get("anyOf", [])]:
            for key, value in branch.get("properties", {}).items():
                if not value.get("description"):
                    lacking.append(f"{name}.{key}")
    assert not lacking


def test_specs_lead_editors_to_it(tmp_path, capsys):
    for name in names():
        assert path_of(name).read_text().startswith(f"{MODELINE}{schema_path().name}\n")
    copy = tmp_path / "my.yaml"
    assert run(["specs", "cp", "lora", str(copy)]) == 0
    first, *rest = copy.read_text().splitlines()
    assert first == f"{MODELINE}{schema_path().resolve().as_uri()}"
    assert rest == path_of("lora").read_text().splitlines()[1:]
    capsys.readouterr()
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
