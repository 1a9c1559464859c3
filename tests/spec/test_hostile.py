"""Hostile specs: each is refused with a code, in seconds and in little memory.

One process loads them all and says what each cost; it imports neither torch nor transformers, and
a limit on its address space stands for the machine's.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAD = "peftc: 1\nname: n\n"
ONE = HEAD + "insert:\n  - id: a\n    at: ffn.out\n    delta: {bottleneck: {dim: 8}}\n"
MILLION = 10**6
USING = "".join(f"  - {{id: i{k}, use: next.yaml}}\n" for k in range(900))

# name: (text, code that it is refused with)
HOSTILE = {
    "a million duplicate keys": ("a: 1\n" * MILLION, "E012"),
    "a megabyte of duplicate keys": ("a: 1\n" * 200_000, "E012"),
    "thousands of duplicate keys": ("a: 1\n" * 9_000, "E002"),
    "thousands of unknown keys": (HEAD + "".join(f"k{i}: 1\n" for i in range(9_000)), "E003"),
    "a megabyte of values": (HEAD + "vars: {a: [" + "1," * 500_000 + "]}\n", "E012"),
    "a million brackets": ("[" * MILLION, "E011"),
    "a million nested keys": ("{a: " * 250_000, "E011"),
    "a million blocks": ("- " * 500_000, "E011"),
    "a million indented keys": ("".join(" " * i + "a:\n" for i in range(1_400)), "E011"),
    "aliases that double": (
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*a, *a]\n" for c in "bcdefghi"),
        "E011",
    ),
    "merge keys": (HEAD + "<<: {a: 1}\n", "E003"),
    "a number of a million digits": (ONE.replace("8", "9" * MILLION), "E005"),
    "an exponent": (ONE.replace("8", "1.0e+999999"), "E005"),
    "infinity": (ONE.replace("8", ".inf"), "E005"),
    "not a number": (ONE.replace("8", ".nan"), "E005"),
    "a product without end": (
        HEAD + "vars: {d: 2147483647}\n" + ONE[len(HEAD) :].replace("8", "$d" + " * $d" * 9_000),
        "E007",
    ),
    "brackets in an expression": (
        HEAD + "vars: {d: 2}\n" + ONE[len(HEAD) :].replace("8", f"{'(' * 9_000}$d{')' * 9_000}"),
        "E007",
    ),
    "a power": (
        HEAD + "vars: {d: 9}\n" + ONE[len(HEAD) :].replace("8", "$d ** $d ** $d ** $d"),
        "E007",
    ),
    "a long key": ("k" * MILLION + ": 1\n", "E001"),
    "a key of thousands of digits": (f"? {'9' * 9_000}\n: 1\n", "E001"),
    "a long name": (HEAD.replace("n\n", "n" * MILLION + "\n") + "insert: 3\n", "E005"),
    "layers without end": (ONE + "    layers: 0-999999999999\n", "E005"),
    "thousands of wrong insertions": (
        HEAD + "insert:\n" + "".join(f"  - {{id: i{i}, ad: x}}\n" for i in range(3_000)),
        "E003",
    ),
    "thousands of steps": (
        ONE.replace("{bottleneck: {dim: 8}}", "{pipe: [" + "{act: gelo}," * 4_000 + "]}"),
        "E004",
    ),
    "quotes": ('a: "' + "\\" * 200_000, "E001"),
    "comments": ("#" * MILLION, "E001"),
    "carriage returns": ("\r" * 200_000, "E001"),
    "thousands of tasks": (
        HEAD
        + "tasks:\n"
        + "".join(f"  t{i}: {{head: question_answering}}\n" for i in range(2_000)),
        "E012",
    ),
    "specs that use specs": (HEAD + "insert:\n" + USING, "E012"),
}

CHILD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from peftc.ground.diagnostics import PeftcError
from peftc.spec import load_spec
load_spec("houlsby")
said = {}
for path in sys.argv[1:]:
    begun = time.process_time()
    try:
        load_spec(path)
        codes = []
    except PeftcError as refusal:
        codes = [d.code for d in refusal.diagnostics]
        str(refusal)
    said[path] = [time.process_time() - begun, codes]
assert "torch" not in sys.modules
status = open("/proc/self/status").read()  # getrusage counts the parent's memory before exec
peak = int(status.split("VmHWM:")[1].split()[0]) >> 10
print(json.dumps({"said": said, "peak": peak}))
"""


@pytest.fixture(scope="module")
def cost(tmp_path_factory):
    """{name: (seconds of the processor, codes)}, and the peak of memory in MiB."""
    home = tmp_path_factory.mktemp("hostile")
    for k, (text, _) in enumerate(HOSTILE.values()):
        (home / f"{k}.yaml").write_text(text)
    (home / "next.yaml").write_text(HEAD + "insert:\n" + USING.replace("next", "last"))
    (home / "last.yaml").write_text(ONE)
    paths = [str(home / f"{k}.yaml") for k in range(len(HOSTILE))]
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    return dict(zip(HOSTILE, (found["said"][p] for p in paths), strict=True)), found["peak"]


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_within_seconds(name, cost):
    seconds, codes = cost[0][name]
    assert HOSTILE[name][1] in codes
    assert len(codes) <= 100
    assert seconds < 10


def test_together_they_stay_within_a_quarter_of_a_gigabyte(cost):
    assert cost[1] < 256
