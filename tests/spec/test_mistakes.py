"""Planted mistakes: each gets its code at its line and column, none is accepted."""

from __future__ import annotations

import pytest

from peftc.ground.diagnostics import PeftcError
from peftc.spec import load_spec

HEAD = "peftc: 1\nname: n\n"
ONE = HEAD + "vars: {dim: 8}\ninsert:\n  - id: a\n    at: ffn.out\n"
DELTA = "    delta: {bottleneck: {dim: $dim}}\n"

# (text, code, line, column, part of the message)
TASK = HEAD + (
    "vars: {t: 3}\n"
    "tasks:\n"
    "  ner: {head: {token_classification: {labels: 9}}, set: {t: 2}}\n"
    "insert:\n"
    "  - id: p\n"
    "    at: attn.kv\n"
)
OWN = "    delta: {prefix: {tokens: $t}}\n    share: per_task\n"
MISTAKES = [
    (HEAD + "nam: x\n", "E003", 3, 1, "unknown key `nam`"),
    ("name: n\n", "E005", 1, 1, "`peftc` is missing"),
    ("peftc: 2\nname: n\n", "E004", 1, 8, "`2` is not a valid `peftc`"),
    ("peftc: 1\nname: 3\n", "E005", 2, 7, "`name` is text, not 3"),
    ("peftc: 1\nname: n\nname: m\n", "E002", 3, 1, "`name` is given twice"),
    (HEAD + "insert: {a: 1}\n", "E005", 3, 9, "`insert` is a list"),
    (HEAD + "insert:\n  - 3\n", "E005", 4, 5, "a mapping"),
    (HEAD + "insert:\n - id: a\n  at: x\n", "E001", 5, 3, "not valid YAML"),
    (HEAD + "insert: [\n", "E001", 3, 10, "the `[` on line 3, column 9 is never closed"),
    (HEAD + "vars: {r: &x 1}\n", "E011", 3, 11, "specs have no anchors"),
    (HEAD + "vars: {r: *x}\n", "E011", 3, 11, "specs have no aliases"),
    (HEAD + "vars: {r: !!int 1}\n", "E011", 3, 11, "specs have no tags"),
    ("--- {}\n--- {}\n", "E001", 2, 1, "not valid YAML"),
    (HEAD + "? ? name: n\n", "E001", 3, 5, "not valid YAML: found unhashable key"),
    (ONE.replace("ffn.out", "fnn.out") + DELTA, "E004", 6, 9, "`fnn.out` is not a valid `at`"),
    (ONE.replace("ffn.out", "[ffn.out, ffn.ot]") + DELTA, "E004", 6, 19, "`ffn.ot`"),
    (ONE.replace("ffn.out", "[]") + DELTA, "E005", 6, 9, "at"),
    (ONE.replace("ffn.out", "{modul: x}") + DELTA, "E003", 6, 10, "unknown key `modul`"),
    (ONE, "E005", 5, 5, "`delta` is missing"),
    (ONE + "    delta: {bottlneck: {dim: 8}}\n", "E003", 7, 13, "unknown key `bottlneck`"),
    (ONE + "    delta: {bottleneck: {dmi: 8}}\n", "E003", 7, 26, "unknown key `dmi`"),
    (ONE + "    delta: {bottleneck: {dim: 0}}\n", "E005", 7, 31, "`dim`"),
    (ONE + "    delta: {bottleneck: {dim: -3}}\n", "E005", 7, 31, "`dim`"),
    (ONE + "    delta: {bottleneck: {dim: 2.5}}\n", "E005", 7, 31, "whole number"),
    (ONE + '    delta: {bottleneck: {dim: "8"}}\n', "E005", 7, 31, "whole number"),
    (ONE + "    delta: {bottleneck: {dim: yes}}\n", "E005", 7, 31, "whole number"),
    (ONE + "    delta: {bottleneck: {dim: 010}}\n", "E005", 7, 31, "whole number"),
    (ONE + "    delta: {bottleneck: {dim: 8, act: swish}}\n", "E004", 7, 39, "`swish`"),
    (ONE + "    delta: {bottleneck: {dim: 8, bias: 1}}\n", "E005", 7, 40, "true or false"),
    (ONE + "    delta: {bottleneck: {dim: 8, dropout: 1.5}}\n", "E005", 7, 43, "`dropout`"),
    (ONE + "    delta: {bottleneck: {dim: $dm}}\n", "E007", 7, 31, "`$dm` is not a variable"),
    (ONE + "    delta: {bottleneck: {dim: $dim ** 2}}\n", "E007", 7, 31, "only names, numbers"),
    (ONE + "    delta: {bottleneck: {dim: $dim / 0}}\n", "E007", 7, 31, "division by zero"),
    (ONE + "    delta: {bottleneck: {dim: $dim.real}}\n", "E007", 7, 31, "only names, numbers"),
    (ONE + "    delta: {bottleneck: {dim: 8}, vector: {}}\n", "E005", 7, 12, "exactly one of"),
    (ONE + "    delta: bottleneck\n", "E005", 7, 12, "`dim` is missing"),
    (ONE + DELTA + "    compose: attend\n", "E010", 8, 14, "does not compose by `attend`"),
    (ONE + DELTA + "    compose: {add: {scal: 2}}\n", "E003", 8, 21, "unknown key `scal`"),
    (ONE + DELTA + "    compose: {add: {scale: big}}\n", "E005", 8, 28, "scale"),
    (ONE + DELTA + "    layers: last\n", "E005", 8, 13, "layers are all, odd, even"),
    (ONE + DELTA + "    layers: [0, -1]\n", "E005", 8, 13, "layers are all, odd, even"),
    (ONE + DELTA + "    stack: middle\n", "E004", 8, 12, "`middle` is not a valid `stack`"),
    (ONE + DELTA + "    form: serial\n", "E004", 8, 11, "`serial` is not a valid `form`"),
    (ONE + DELTA + "    optional: maybe\n", "E005", 8, 15, "true or false"),
    (
        ONE + "    delta: {prefix: {tokens: 4}}\n",
        "E010",
        6,
        9,
        "`prefix` cannot stand at `ffn.out`",
    ),
    (ONE + "    delta: {pipe: {act: relu}}\n", "E005", 7, 19, "`pipe` is a list of steps"),
    (ONE + "    delta: {pipe: []}\n", "E005", 7, 19, "`pipe` must have at least 1 item"),
    (ONE + "    delta: {pipe: [{linaer: {out: 3}}]}\n", "E003", 7, 21, "unknown key `linaer`"),
    (ONE + "    delta: {pipe: [{linear: {ot: 3}}]}\n", "E003", 7, 30, "unknown key `ot`"),
    (
        ONE + "    delta: {pipe: [{linear: {out: 0}}]}\n",
        "E004",
        7,
        35,
        "or a number that is greater",
    ),
    (ONE + "    delta: {pipe: [{act: swish}]}\n", "E004", 7, 26, "`swish` is not a valid `act`"),
    (ONE + "    delta: {pipe: [{conv1d: {kernel: 2}}]}\n", "E005", 7, 29, "needs an odd kernel"),
    (ONE + "    delta: {pipe: [{scale: x}]}\n", "E005", 7, 28, "a number or a mapping, not 'x'"),
    (ONE + "    delta: {pipe: [{residual: [{act: gelo}]}]}\n", "E004", 7, 38, "mean `gelu`"),
    (ONE + "    delta: {pipe: [{act: relu, norm: rms}]}\n", "E005", 7, 20, "exactly one of"),
    (ONE + DELTA + "export: {fold: [b]}\n", "E004", 8, 17, "`b` is no insertion of this spec"),
    (ONE + DELTA + "export: {fold: [a]}\n", "E402", 8, 17, "a bottleneck cannot be merged"),
    (ONE + DELTA + "export: {flod: [a]}\n", "E003", 8, 10, "did you mean `fold`"),
    (
        ONE + "    delta: {low_rank: {rank: 4}}\n",
        "E010",
        6,
        9,
        "`low_rank` cannot stand at `ffn.out`",
    ),
    (ONE + "    delta: {vector: {}}\n    reads: x\n", "E010", 8, 12, "reads nothing"),
    (ONE.replace("id: a", "id: 1a") + DELTA, "E005", 5, 9, "`1a` cannot be an id"),
    (ONE.replace("id: a", "id: in") + DELTA, "E005", 5, 9, "`in` cannot be an id"),
    (HEAD + "unfreeze:\n  - {role: nrom}\n", "E004", 4, 12, "`nrom` is not a valid `role`"),
    (HEAD + "unfreeze:\n  - {}\n", "E005", 4, 5, "exactly one of: role, module"),
    (HEAD + "expect: {sites: two}\n", "E005", 3, 9, "`sites` is a number or"),
    (HEAD + "insert:\n  - {id: a, use: lroa}\n", "E006", 4, 18, "`lroa` is neither"),
    (HEAD + "insert:\n  - {id: a, use: lora, set: {rnk: 4}}\n", "E007", 4, 30, "`rnk`"),
    (HEAD + "insert:\n  - {id: a, use: lora, layer: all}\n", "E003", 4, 24, "`layer`"),
    (HEAD + "insert:\n  - {id: a, use: lora, set: {rank: big}}\n", "E007", 4, 30, "a number"),
    (HEAD + "insert:\n  - {id: a, use: prompt, layers: odd}\n", "E010", 4, 34, "has no layers"),
    (ONE + DELTA + "    form: parallel\n    reads: h\n", "E010", 9, 12, "says otherwise"),
    (
        ONE.replace("ffn.out", "{module: x}") + DELTA + "    layers: odd\n",
        "E010",
        8,
        13,
        "`module: x` has no layers",
    ),
    (
        ONE.replace("ffn.out", "[ffn.out, {module: x}]") + DELTA + "    stack: decoder\n",
        "E010",
        8,
        12,
        "`module: x` has no stacks",
    ),
    ("peftc: 1\nname: a\x00b\n", "E001", 2, 8, "a control character, 0x00"),
    (HEAD + "insert:\n\t- id: a\n", "E001", 4, 1, "with blanks, not with tabs"),
    (ONE + DELTA + "    share: per_task\n", "E013", 8, 5, "the spec has no tasks"),
    (ONE + DELTA + "    by_task: {}\n    share: some\n", "E004", 9, 12, "not a valid `share`"),
    (TASK + "    delta: {prefix: {tokens: $t}}\n", "E013", 5, 52, "which all tasks share"),
    (TASK.replace("set: {t:", "set: {s:") + OWN, "E007", 5, 58, "`s` is no variable of"),
    (TASK.replace("t: 2", "t: x") + OWN, "E007", 5, 58, "a number in"),
    (TASK.replace("t: 2", "t: 0") + OWN, "E005", 9, 30, "of the task `ner`"),
    (TASK.replace("9", "1") + OWN, "E005", 5, 47, "greater than or equal to 2, not 1"),
    (TASK.replace("9", "[a, a]") + OWN, "E005", 5, 47, "the label `a` is given twice"),
    (TASK.replace("9", "x") + OWN, "E005", 5, 47, "`labels` is a number or a list"),
    (TASK.replace("labels", "lables") + OWN, "E003", 5, 39, "did you mean `labels`"),
    (TASK.replace("head", "haed") + OWN, "E003", 5, 9, "did you mean `head`"),
    (TASK.replace("token_c", "tokn_c") + OWN, "E003", 5, 16, "`token_classification`"),
    (TASK.replace("ner:", "1:") + OWN, "E013", 5, 3, "`1` is no name"),
    (TASK.replace("id: p", "id: tasks") + OWN, "E013", 7, 5, "give the insertion another id"),
    (TASK.replace("{t: 2}", "{t: 3}") + OWN, "E013", 5, 52, "changes no piece of `ner`"),
    (TASK + OWN + "    by_task: {nre: {}}\n", "E004", 11, 15, "did you mean `ner`"),
    (TASK + OWN + "    by_task: {ner: {detla: {}}}\n", "E003", 11, 21, "did you mean `delta`"),
    (
        TASK + OWN + "    by_task: {ner: {delta: {prefix: {tokens: 4, positions: keep}}}}\n",
        "E013",
        7,
        5,
        "`positions` of `p` cannot differ from task to task",
    ),
    (
        TASK + OWN + "    compose: {attend: {gate: {}}}\n",
        "E013",
        7,
        5,
        "`tokens` of `p` cannot differ from task to task",
    ),
    (
        TASK + OWN.replace("per_task", "all_tasks") + "    by_task: {ner: {}}\n",
        "E013",
        11,
        5,
        "`by_task` needs `share: per_task`",
    ),
    (
        TASK.replace("attn.kv", "ffn.out").replace("$t", "3").replace(", set: {t: 2}", "")
        + "    delta: {pipe: [{act: relu}]}\n    share: per_task\n",
        "E013",
        10,
        5,
        "what can be `per_task`: bottleneck, low_rank, prefix, prompt, vector",
    ),
    (
        TASK.replace("attn.kv", "embed.out").replace(", set: {t: 2}", "")
        + "    delta: {prompt: {tokens: 3}}\n    compose: {prepend: {trim: false}}\n",
        "E013",
        10,
        5,
        "leave `trim` out",
    ),
    (
        TASK.replace("attn.kv", "embed.out").replace(", set: {t: 2}", "")
        + "    delta: {prompt: {tokens: 3, ensemble: 2}}\n",
        "E013",
        9,
        5,
        "an ensemble votes on one model's outputs, not on those of tasks",
    ),
    (
        TASK.partition("insert:")[0] + "insert:\n  - {id: p, use: ptuning2_multitask}\n",
        "E013",
        7,
        18,
        "`ptuning2_multitask` has tasks of its own, as this spec has",
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=lambda c: f"{c[1]} {c[4][:40]}")
def test_a_mistake_is_refused_at_its_place(case, tmp_path):
    text, code, line, column, message = case
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PeftcError) as caught:
        load_spec(path)
    found = [
        (d.code, d.span and d.span.line, d.span and d.span.column) for d in caught.value.diagnostics
    ]
    assert (code, line, column) in found, str(caught.value)
    assert message in str(caught.value)
    assert caught.value.exit_code == (6 if code == "E402" else 2)


def test_all_mistakes_are_said_at_once_and_each_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(ONE.replace("ffn.out", "atn.out") + "    dleta: {bottleneck: {dim: 8}}\n")
    with pytest.raises(PeftcError) as caught:
        load_spec(path)
    assert str(caught.value).replace(str(path), "mine.yaml") == (
        "error[E004]: `atn.out` is not a valid `at`\n"
        " --> mine.yaml:6:9\n"
        "  |\n"
        "6 |     at: atn.out\n"
        "  |         ^^^^^^^\n"
        "  = help: did you mean `attn.out`?\n"
        "  = help: one of: embed.out, attn.q, attn.k, attn.v, attn.kv, attn.heads, attn.out, "
        "cross.q, cross.k, cross.v, cross.kv, cross.heads, cross.out, ffn.gate, ffn.up, ffn.act, "
        "ffn.down, ffn.out, mixer.out, block.out\n"
        "\n"
        "error[E003]: unknown key `dleta`\n"
        " --> mine.yaml:7:5\n"
        "  |\n"
        "7 |     dleta: {bottleneck: {dim: 8}}\n"
        "  |     ^^^^^ not a key of `insert.0`\n"
        "  = help: did you mean `delta`?\n"
        "  = help: keys allowed here: id, at, layers, without, stack, form, reads, delta, compose, "
        "optional, share, by_task"
    )


@pytest.mark.parametrize(
    ("data", "line", "column", "text"),
    [
        (b"\xef\xbb\xbfname: \xc3\xa9\xff\n", 1, 8, "name: é�"),
        (b"peftc: 1\rname: \xff\rabout: x\n", 2, 7, "name: �"),
        (b"peftc: 1\rname: \x00\n", 2, 7, "name: \x00"),
    ],
    ids=["behind a byte order mark", "in lines that end with \\r", "a control character there"],
)
def test_a_byte_that_is_no_text_is_found(data, line, column, text, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes(data)
    with pytest.raises(PeftcError) as caught:
        load_spec(path)
    [found] = caught.value.diagnostics
    assert found.span is not None
    assert (found.code, found.span.line, found.span.column) == ("E001", line, column)
    assert found.span.text == text


def test_specs_that_use_one_another_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "insert:\n  - {id: x, use: b.yaml}\n")
    (tmp_path / "b.yaml").write_text(HEAD + "insert:\n  - {id: x, use: a.yaml}\n")
    with pytest.raises(PeftcError, match="E009"):
        load_spec(tmp_path / "a.yaml")


def test_hostile_text_costs_nothing(tmp_path):
    for text in ("[" * 100_000, "{a: " * 50_000, "a: &a [*a, *a]", "x" * (2 << 20), "\x00", "\t"):
        path = tmp_path / "h.yaml"
        path.write_text(text)
        with pytest.raises(PeftcError):
            load_spec(path)


def test_numbers_are_numbers(tmp_path):
    path = tmp_path / "n.yaml"
    path.write_text(HEAD + "vars: {a: 1e-4, b: no, c: 12}\n")
    assert load_spec(path).vars == {"a": 1e-4, "b": "no", "c": 12}
