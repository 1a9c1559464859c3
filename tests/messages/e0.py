"""E0xx: specs, the command line, rows of data."""

from __future__ import annotations

from pathlib import Path

from messages.cases import ONE, Here, case

HEAD = "peftc: 1\nname: n\n"
AT = HEAD + "vars: {dim: 8}\ninsert:\n  - id: a\n    at: ffn.out\n"
ROW = '{"text": "a cat", "label": "LABEL_0"}\n'


@case("E001", "a bracket left open")
def _(here: Here):
    here.check(HEAD + "insert: [\n")


@case("E001", "a line in the wrong column")
def _(here: Here):
    here.check(HEAD + "insert:\n  - id: a\n   at: attn.out\n    delta: vector\n")


@case("E001", "a tab")
def _(here: Here):
    here.check(HEAD + "insert:\n\t- id: a\n")


@case("E001", "an empty file")
def _(here: Here):
    here.check("# nothing yet\n")


@case("E001", "another encoding")
def _(here: Here):
    here.check("peftc: 1\nname: größe\n".encode("latin-1"))


@case("E001", "UTF-16")
def _(here: Here):
    here.check("peftc: 1\nname: n\n".encode("utf-16"))


@case("E001", "a control character")
def _(here: Here):
    here.check("peftc: 1\nname: a\x00b\n")


@case("E001", "half of a character")
def _(here: Here):
    here.check('peftc: 1\nname: "a \\ud83d"\n')


@case("E002", "a key given twice")
def _(here: Here):
    here.check(ONE.replace("    at:", "    id: b\n    at:"))


@case("E003", "a misspelt option, and a misspelt key")
def _(here: Here):
    here.check(AT + "    layer: odd\n    delta: {bottleneck: {dmi: $dim}}\n")


@case("E003", "a key that no spec has")
def _(here: Here):
    here.check(HEAD + "learning_rate: 1e-4\n")


@case("E004", "a misspelt role")
def _(here: Here):
    here.check(ONE.replace("ffn.out", "atn.out"))


@case("E004", "a misspelt activation")
def _(here: Here):
    here.check(ONE.replace("dim: 8", "dim: 8, act: swish"))


@case("E004", "an unknown insertion in export.fold")
def _(here: Here):
    here.check(ONE + "export: {fold: [b]}\n")


@case("E005", "something missing")
def _(here: Here):
    here.check(AT)


@case("E005", "text for a number")
def _(here: Here):
    here.check(ONE.replace("dim: 8", 'dim: "8"'))


@case("E005", "a number out of range")
def _(here: Here):
    here.check(ONE.replace("dim: 8", "dim: 0"))


@case("E005", "an id given to two insertions")
def _(here: Here):
    here.check(ONE + "  - {id: a, at: attn.out, delta: vector}\n")


@case("E005", "a list where a mapping is needed")
def _(here: Here):
    here.check("- peftc\n- 1\n")


@case("E005", "two deltas in one insertion")
def _(here: Here):
    here.check(ONE.replace("{dim: 8}", "{dim: 8}, vector: {}"))


@case("E006", "a name that is no spec")
def _(here: Here):
    here.run("plan", "houlsy", "model")


@case("E006", "a path to no file")
def _(here: Here):
    here.run("specs", "show", "./mine.yaml")


@case("E006", "a name in `use`")
def _(here: Here):
    here.check(HEAD + "insert:\n  - {id: a, use: lroa}\n")


@case("E006", "a file that may not be read")
def _(here: Here):
    def denied(*_args):
        raise PermissionError(13, "Permission denied")

    here.write(ONE)
    here.monkeypatch.setattr("peftc.spec.parse.first_bytes", denied)
    here.run("specs", "show", "./mine.yaml", "--expanded")


@case("E006", "a folder")
def _(here: Here):
    Path("folder").mkdir()
    here.check(HEAD + "insert:\n  - {id: a, use: folder}\n")


@case("E017", "a file outside of the folder of the spec")
def _(here: Here):
    here.check(HEAD + "insert:\n  - {id: a, use: ../../secret.yaml}\n")


@case("E017", "a link that leads out of it")
def _(here: Here):
    Path("inner.yaml").symlink_to("/etc/hostname")
    here.check(HEAD + "insert:\n  - {id: a, use: inner.yaml}\n")


@case("E007", "a variable that is not there")
def _(here: Here):
    here.check(AT + "    delta: {bottleneck: {dim: $dmi}}\n")


@case("E007", "what expressions do not have")
def _(here: Here):
    here.check(AT + "    delta: {bottleneck: {dim: $dim ** 2}}\n")


@case("E007", "--set of an unknown variable")
def _(here: Here):
    here.run("plan", "lora", "model", "--set", "rnk=4")


@case("E007", "--set of text for a number")
def _(here: Here):
    here.run("plan", "lora", "model", "--set", "rank=big")


@case("E008", "an unknown verb")
def _(here: Here):
    here.run("aply", "lora", "model")


@case("E008", "an unknown option")
def _(here: Here):
    here.run("plan", "lora", "model", "--layers", "3")


@case("E008", "an argument left out")
def _(here: Here):
    here.run("plan", "lora")


@case("E008", "no model")
def _(here: Here):
    here.run("apply", "lora", "-o", "out")


@case("E008", "--set without a value")
def _(here: Here):
    here.run("plan", "lora", "model", "--set", "rank")


@case("E008", "an unknown dtype")
def _(here: Here):
    here.run("plan", "lora", "model", "--dtype", "fp16")


@case("E008", "an unknown attention")
def _(here: Here):
    here.run("plan", "lora", "model", "--attn", "flash")


@case("E008", "labels that are none")
def _(here: Here):
    here.run("plan", "lora", "model", "--labels", "few")


@case("E008", "an unknown code")
def _(here: Here):
    here.run("explain", "E1O1")


@case("E009", "specs that use one another")
def _(here: Here):
    here.write(HEAD + "insert:\n  - {id: b, use: mine.yaml}\n", "other.yaml")
    here.check(HEAD + "insert:\n  - {id: a, use: other.yaml}\n")


@case("E010", "a delta at the wrong site")
def _(here: Here):
    here.check(AT + "    delta: {prefix: {tokens: $dim}}\n")


@case("E010", "a composition that the delta does not have")
def _(here: Here):
    here.check(ONE + "    compose: attend\n")


@case("E011", "an alias")
def _(here: Here):
    here.check(HEAD + "vars: {a: &x 1, b: *x}\n")


@case("E011", "too much nesting")
def _(here: Here):
    here.check(HEAD + "vars: " + "[" * 50 + "]" * 50 + "\n")


@case("E012", "a file too large")
def _(here: Here):
    here.check(HEAD + "about: " + "x" * (1 << 20) + "\n")


@case("E013", "pieces of each task's own, and no tasks")
def _(here: Here):
    here.check(ONE + "    share: per_task\n")


@case("E013", "a variable of a task, at a piece that all share")
def _(here: Here):
    tasks = "tasks:\n  qa: {head: question_answering, set: {dim: 4}}\n"
    here.check(HEAD + tasks + AT.removeprefix(HEAD) + "    delta: {bottleneck: {dim: $dim}}\n")


@case("E014", "a range of layers that ends before it begins")
def _(here: Here):
    here.check(ONE + "    layers: 0, 5-2\n")


@case("E014", "the first none")
def _(here: Here):
    here.check(ONE + "    layers: first 0\n")


@case("E014", "layers without all of them")
def _(here: Here):
    here.check(ONE + "    layers: last 2\n    without: last 4\n")


@case("E014", "sizes of no layers")
def _(here: Here):
    here.check(ONE.replace("dim: 8", "dim: {default: 8, 3-1: 4}"))


@case("E014", "a size where nothing stands")
def _(here: Here):
    here.check(ONE.replace("dim: 8", "dim: {default: 8, 5-7: 4}") + "    layers: 0-3\n")


@case("E014", "a blank name")
def _(here: Here):
    here.check(HEAD + 'unfreeze: [{parameter: " "}]\n')


PROMPTS = (
    HEAD + "insert:\n"
    "  - {id: p, at: embed.out, delta: {prompt: {tokens: 4}}}\n"
    "  - {id: q, at: embed.out, delta: {prompt: {tokens: 3}}"
)


@case("E015", "two prompts, one of them cut from the outputs")
def _(here: Here):
    here.check(PROMPTS + ", compose: {prepend: {trim: false}}}\n")


@case("E016", "a convolution before a prompt")
def _(here: Here):
    conv = "id: m, at: embed.out, delta: {pipe: [{residual: [{conv1d: {kernel: 3}}]}]}"
    here.check(PROMPTS.replace("  - {id: q", f"  - {{{conv}}}\n  - {{id: q") + "}\n")


def train(here: Here, rows: str) -> None:
    """Train ./out on rows."""
    here.artifact()
    here.write(rows, "rows.jsonl")
    here.run("train", "out", "--data", "rows.jsonl", "--steps", "1")


@case("E081", "no file of rows")
def _(here: Here):
    here.run("train", "out", "--data", "rows.jsonl")


@case("E081", "rows that are no regular file")
def _(here: Here):
    here.artifact()
    here.run("train", "out", "--data", "/dev/null")


@case("E082", "rows that are wrong")
def _(here: Here):
    wrong = ["{'text': 'a'}", '{"text": "a"}', '{"text": "a", "label": "LABEL_9"}', "[1]"]
    train(here, ROW + "\n".join(wrong) + "\n")


@case("E082", "rows that are no JSON, or not the same to every reader")
def _(here: Here):
    twice = ROW.replace('"label"', '"text"', 1).strip()
    wrong = [ROW.strip().replace("cat", r"\ud83d"), twice, ROW.strip().replace('"LABEL_0"', "NaN")]
    train(here, ROW + "\n".join(wrong) + "\n")


@case("E082", "no rows")
def _(here: Here):
    train(here, "\n")


@case("E083", "no tokenizer")
def _(here: Here):
    here.without_tokenizer()
    here.artifact(reference="bare")
    here.write(ROW, "rows.jsonl")
    here.run("train", "out", "--data", "rows.jsonl")
