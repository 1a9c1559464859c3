"""The verbs as a person types them: results, refusals, exit codes, and nothing left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest
from jsonschema import Draft202012Validator

from peftc.cli.main import run

# `artifact`, made before, is captured by itself.
pytestmark = pytest.mark.usefixtures("captures_once")
HEAVY = ("torch", "transformers", "onnx")


def peftc(capsys, *args: str) -> tuple[int, str, str]:
    """Run a command line; (exit code, stdout, stderr)."""
    code = run([str(a) for a in args])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


@pytest.fixture(scope="module")
def artifact(model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("artifact") / "out"
    said = StringIO()
    with redirect_stdout(said):
        assert run(["apply", "houlsby", str(model_folder), "-o", str(out)]) == 0
    (out / "said.txt").write_text(said.getvalue())
    return out


@pytest.mark.parametrize("args", [["--help"], ["specs", "ls"], ["check", "lora"], ["--version"]])
def test_light_verbs_import_nothing_heavy(args):
    code = (
        "import sys; from peftc.cli.main import run; code = run(sys.argv[1:]); "
        f"heavy = [m for m in {HEAVY} if m in sys.modules]; "
        "print('HEAVY', heavy, file=sys.stderr); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("HEAVY []")


def test_every_verb_has_help(capsys):
    verbs = "check sites plan apply train export verify bench import specs demo"
    for verb in verbs.split():
        code, out, _ = peftc(capsys, verb, "--help")
        assert code == 0
        assert f"peftc {verb}" in out
        assert not re.search(r"\{[a-z]", out), "an argument without a name to show"


def test_sites(capsys, model_folder, tmp_path):
    page = tmp_path / "sites.html"
    code, out, _ = peftc(capsys, "sites", model_folder, "--html", page)
    assert code == 0
    assert "BertForSequenceClassification  3 blocks, width 24, 4 heads x 6, post-norm" in out
    assert "bert.encoder.layer.{i}.attention.self.query" in out
    assert "Not in this model: cross.*  (no cross-attention), ffn.gate, mixer.out" in out
    assert re.search(r"head +- +24 > 5 +classifier +unfreeze", out)
    drawn = page.read_text()
    assert '<a href="#site-attn.q"><title>bert.encoder.layer.0.attention.self.query' in drawn
    assert '<tr id="site-attn.q">' in drawn
    code, _, err = peftc(capsys, "sites", model_folder, "--html", page)
    assert (code, "error[E306]" in err) == (5, True)
    code, _, err = peftc(capsys, "sites", model_folder, "--stack", "middle")
    assert (code, "one of: any, encoder, decoder" in err) == (2, True)
    code, out, _ = peftc(capsys, "sites", model_folder, "--json", "--grep", "attn.kv")
    data = json.loads(out)
    assert data["format_version"] == "1.0"
    assert [r["site"] for r in data["sites"]] == ["attn.kv"]


def test_plan(capsys, model_folder):
    code, out, _ = peftc(capsys, "plan", "lora", model_folder, "--set", "rank=3")
    assert code == 0
    assert "Plan: 1 to insert, 2 to unfreeze.  trainable 989 of " in out  # 6 * 144 and the head
    assert "Inputs and outputs: unchanged.   After fold: qv merged (-864).\n" in out
    assert re.search(
        r"\nNeeds: RAM [\d.]+ MB, disk 4.0 MB, training about [\d.]+ MB on a GPU at ", out
    )
    code, out, _ = peftc(capsys, "plan", "lora", model_folder, "--json", "--set", "rank=3")
    data = json.loads(out)
    assert data["parameters"]["inserted"] == 6 * 3 * (24 + 24)
    assert data["after_fold"] == ["qv merged (-864)"]
    assert set(data["needs"]) == {"ram", "disk", "training"}


def test_apply_writes_an_artifact(artifact):
    said = (artifact / "said.txt").read_text()
    assert " check     frozen path unchanged: max |diff| 0.0 with insertions zeroed" in said
    files = ["peft.safetensors", "peftc.lock.json", "spec.yaml", "graph.txt", "graph.html",
             "README.md"]  # fmt: skip
    assert [n for n in re.findall(r"(?m)^  (\S+\.\w+) ", said) if "." in n] == files
    assert {p.name for p in artifact.iterdir()} == {*files, "said.txt"}
    assert '<section id="after_ffn">' in (artifact / "graph.html").read_text()
    lock = json.loads((artifact / "peftc.lock.json").read_text())
    assert lock["model"]["class"] == "BertForSequenceClassification"


def test_verbose_says_what_is_done(capsys, model_folder, tmp_path):
    args = ["apply", "lora", model_folder, "-o", tmp_path / "out", "-v"]
    code, out, err = peftc(capsys, *args)
    assert code == 0
    assert err.startswith(
        "load\nrewrite\ninsert peft.qv at 6 sites: 24 lines of the graph changed, "
    )
    assert "peft.qv" not in out
    assert peftc(capsys, *args, "--force", "--quiet")[2] == ""


def test_export_and_verify(capsys, artifact, tmp_path):
    out = tmp_path / "onnx"
    code, text, _ = peftc(capsys, "export", artifact, "--to", "onnx", "-o", out)
    assert code == 0
    assert "PASS  max |diff| " in text
    code, text, _ = peftc(capsys, "verify", artifact, out, "--json")
    assert code == 0
    assert json.loads(text)["ok"] is True
    code, text, _ = peftc(capsys, "verify", artifact, out, "--tol", "0")
    assert code == 6
    assert "FAIL" in text
    (out / "model.onnx").write_bytes(b"")
    code, _, err = peftc(capsys, "verify", artifact, out)
    assert code == 5
    assert "error[E303]" in err


def test_train(capsys, artifact, tmp_path):
    rows = [{"text": f"the {w} cat", "label": k % 2} for k, w in enumerate(["red", "blue"] * 8)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    args = ["train", artifact, "--data", data, "--eval", data, "--steps", "8", "--name", "one"]
    code, out, err = peftc(capsys, *args)
    assert code == 0, err
    assert "trained 8 steps" in out
    assert (artifact / "runs" / "one" / "peft.safetensors").is_file()
    code, _, err = peftc(capsys, *args)
    assert code == 5
    assert "error[E306]" in err
    code, out, _ = peftc(
        capsys, "train", artifact / "runs" / "one", "--data", data, "--steps", "2", "--json"
    )
    assert code == 0
    assert json.loads(out)["out"] == str(artifact / "runs" / "001")


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["aply"], 2, "did you mean `apply`?"),
        (["apply", "lora"], 2, "missing option '-o'"),
        (["check", "nope"], 2, "error[E006]: `nope` is neither a shipped spec nor a file"),
        (["plan", "lora", "./nowhere"], 4, "error[E205]: ./nowhere: no such folder"),
        (["plan", "lora", "{model}", "--set", "rnk=2"], 2, "error[E007]"),
        (["plan", "lora", "{model}", "--set", "rank"], 2, "error[E008]"),
        (["plan", "lora", "{model}", "--task", "causal"], 4, "did you mean `causal-lm`?"),
        (["plan", "lora", "{model}", "--attn", "flash"], 2, "one of: sdpa, eager"),
        (["plan", "lora", "{model}", "--set", "rank=64"], 3, "error[E103]"),
        (["apply", "lora", "{model}", "-o", "{full}"], 5, "error[E306]"),
        (["export", "{empty}", "--to", "onnx"], 5, "error[E308]"),
        (["export", "{empty}", "--to", "coreml"], 6, "error[E401]: cannot export to coreml"),
        (["train", "{empty}", "--data", "nowhere.jsonl"], 2, "error[E081]"),
        (["demo", "-o", "{full}"], 5, "error[E306]"),
    ],
)
def test_refusals(capsys, model_folder, tmp_path, args, code, text):
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    (full / "mine").write_text("keep")
    empty.mkdir()
    names = {"model": model_folder, "full": full, "empty": empty}
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    got, _, err = peftc(capsys, *[a.format(**names) for a in args])
    assert (got, text in err) == (code, True), err
    assert "Traceback" not in err
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_refusals_as_json(capsys):
    code, out, err = peftc(capsys, "plan", "nope", "x", "--json")
    assert (code, err) == (2, "")
    data = json.loads(out)
    assert data["ok"] is False
    assert data["diagnostics"][0]["code"] == "E006"


def test_check_says_all_mistakes_of_all_files(capsys, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("peftc: 1\nname: n\nnam: x\nexpct: 3\n")
    code, out, err = peftc(capsys, "check", bad, "lora")
    assert code == 2
    assert err.count("error[E003]") == 2
    assert "2 error(s); nothing was loaded or downloaded" in err
    assert "ok  lora: lora, 1 insertion(s)" in out


def test_specs_cp_does_not_overwrite(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    assert peftc(capsys, "specs", "cp", "lora", mine)[0] == 0
    assert peftc(capsys, "check", mine)[0] == 0
    code, _, err = peftc(capsys, "specs", "cp", "lora", mine)
    assert (code, "error[E306]" in err) == (5, True)
    code, out, _ = peftc(capsys, "specs", "diff", "lora", mine)
    assert (code, out) == (0, "")


def test_specs_ls_has_a_line_for_each_where_piped(capsys):
    code, out, _ = peftc(capsys, "specs", "ls")
    assert code == 0
    assert re.search(r"(?m)^mam +attn.kv, ffn.out +attn\(q, .*; h \+ .* 22,493,984 +no +$", out)
    assert re.search(r"(?m)^bitfit +bias, head +- +102,912 +no +$", out)
    assert re.search(r"(?m)^houlsby +attn.out, ffn.out .* 1,827,456 +no +$", out)


def test_a_part_of_the_schema_stands_by_itself(capsys, tmp_path):
    code, out, _ = peftc(capsys, "schema", "--field", "insert.delta")
    assert code == 0
    delta = json.loads(out)
    Draft202012Validator.check_schema(delta)
    check = Draft202012Validator(delta).is_valid
    assert check({"bottleneck": {"dim": 4}})
    assert check({"pipe": [{"residual": [{"act": "relu"}]}]})
    assert not check({"bottleneck": {"dmi": 4}})
    assert not check({"pipe": [{"residual": [{"act": "relo"}]}]})
    code, _, err = peftc(capsys, "schema", "--field", "insert.dleta")
    assert code == 2
    assert err.startswith("error[E008]: --field insert.dleta: there is no key `dleta`\n")
    assert "= help: did you mean `delta`?" in err
    path = tmp_path / "schema.json"
    assert peftc(capsys, "schema", "--field", "insert.delta.pipe", "-o", path)[0] == 0
    assert "$defs" in json.loads(path.read_text())
    assert peftc(capsys, "schema", "-o", path)[0] == 5


def test_a_bug_is_called_one(capsys, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("peftc.spec.load_spec", broken)
    code, _, err = peftc(capsys, "check", "lora")
    assert code == 1
    assert "this is a bug in peftc: ZeroDivisionError: oops" in err
    assert "Traceback" not in err
