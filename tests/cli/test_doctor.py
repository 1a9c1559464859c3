"""`peftc doctor`: what it says, of which machine, and when it calls something wrong."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import sys
import threading

import pytest

from peftc.cli.main import run
from peftc.cli.verbs import doctor

FACTS = {
    "packages": [
        {"name": "peftc", "version": "0.1.0", "asked": "", "extra": "", "fits": True},
        {"name": "torch", "version": "2.9.0", "asked": "<2.14,>=2.11", "extra": "", "fits": False},
        {"name": "pyyaml", "version": None, "asked": ">=6", "extra": "", "fits": False},
        {"name": "onnx", "version": None, "asked": ">=1.20", "extra": "onnx", "fits": False},
    ],
    "machine": {
        "system": "Linux-6",
        "python": "3.11.7",
        "executable": "/bin/python",
        "cores": 2,
        "free_memory": 22_000_000_000,
    },
    "gpu": {
        "devices": [{"name": "H100", "memory": 85_000_000_000}],
        "cuda": "12.8",
        "problem": None,
    },
    "disk": [{"what": "outputs here", "path": "/work", "free": 83_000_000_000}],
    "hub": {"url": "https://huggingface.co", "answers": True, "said": "answers in 0.1 s"},
}
TEXT = """\
PACKAGE   VERSION         PEFTC ASKS FOR   EXTRA
────────────────────────────────────────────────
peftc     0.1.0           -                -
torch     2.9.0           <2.14,>=2.11     -
pyyaml    not installed   >=6              -
onnx      not installed   >=1.20           onnx

system  Linux-6, 2 cores, 22 GB of memory free
python  3.11.7  /bin/python
gpu     H100 (85 GB)  (CUDA 12.8)
disk    83 GB free for outputs here: /work
hub     https://huggingface.co answers in 0.1 s

problem: torch 2.9.0 does not go together with this peftc: pip install 'torch<2.14,>=2.11'
problem: pyyaml is not installed: pip install 'pyyaml>=6'
"""


def test_the_report(capsys):
    doctor.show(FACTS, list(doctor.wrong(FACTS)))
    lines = capsys.readouterr().out.splitlines()
    assert "\n".join(line.rstrip() for line in lines) + "\n" == TEXT


def test_this_machine(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["format_version"], data["ok"], data["problems"]) == ("1.0", True, [])
    names = {p["name"]: p for p in data["packages"]}
    assert names["torch"]["version"] == importlib.metadata.version("torch")
    assert names["onnx"]["extra"] == "onnx"
    assert "pytest" not in names
    assert data["hub"] == {
        "url": "https://huggingface.co",
        "answers": None,
        "said": "not asked: offline",
    }
    assert all(d["free"] > 0 for d in data["disk"])


def test_a_version_that_does_not_fit(capsys, monkeypatch):
    known = doctor.version
    old = {"transformers": "4.40.0", "rich": None}
    monkeypatch.setattr(doctor, "version", lambda n: old[n] if n in old else known(n))
    assert run(["doctor", "--offline", "--json"]) == 7
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert data["problems"] == [
        "transformers 4.40.0 does not go together with this peftc: "
        "pip install 'transformers>=5.17'",
        "rich is not installed: pip install 'rich>=13.9'",
    ]


def test_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.gpu()
    assert found["problem"].startswith("torch cannot be imported: ")
    assert list(doctor.wrong({"packages": [], "gpu": found})) == [found["problem"]]


@pytest.fixture
def refusing():
    """A server that answers every request with 403."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_hub_that_answers_and_one_that_does_not(monkeypatch, refusing):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", refusing)
    found = doctor.hub()
    assert (found["url"], found["answers"]) == (refusing, True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = doctor.hub()
    assert found["answers"] is False
    assert found["said"] == "does not answer: [Errno 111] Connection refused"
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    assert doctor.hub()["said"] == "does not answer: unknown url type: 'nonsense'"
