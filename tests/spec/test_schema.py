"""The JSON schema for editors: accepts what loads, refuses what does not, describes every key."""

from __future__ import annotations

import json

import jsonschema
import pytest

from peftc.cli.main import run
from peftc.spec import load_spec
from peftc.spec.catalogue import names, path_of
from peftc.spec.json_schema import IDENTITY, MODELINE, json_schema, schema_path
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
    assert first == f"{MODELINE}spec.schema.json"
    assert rest == path_of("lora").read_text().splitlines()[1:]
    assert json.loads((tmp_path / "spec.schema.json").read_text()) == json_schema()
    for path in tmp_path.iterdir():
        assert str(schema_path().parent) not in path.read_text()
    capsys.readouterr()
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_the_schema_has_a_name_that_is_no_place():
    written = json_schema()
    assert written["$id"] == IDENTITY
    assert next(iter(written)) == "$schema"
    assert VALIDATOR.is_valid(RIGHT)
    assert not VALIDATOR.is_valid({**RIGHT, "insert": [{"id": 3}]})


def test_a_schema_that_is_there_is_kept(tmp_path, capsys):
    beside, copy = tmp_path / "spec.schema.json", tmp_path / "a.yaml"
    older = json.dumps({"$id": IDENTITY, "title": "older"})
    for text, named in ((older, True), ('{"title": "another"}', False), ("{", False)):
        beside.write_text(text)
        copy.unlink(missing_ok=True)
        assert run(["specs", "cp", "lora", str(copy)]) == 0
        assert copy.read_text().startswith(MODELINE) == named
        assert beside.read_text() == text
        said = "of another version of peftc" if named else "is no schema of peftc"
        assert said in capsys.readouterr().err
    beside.write_text(older)
    assert run(["schema", "-o", str(beside), "--force"]) == 0
    assert run(["specs", "cp", str(copy), str(tmp_path / "b.yaml")]) == 0
    assert (tmp_path / "b.yaml").read_text() == path_of("lora").read_text()
    assert capsys.readouterr().err == ""
