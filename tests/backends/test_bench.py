"""What an exported file costs beside its frozen base: calls alternate, in another process."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import linking
import pytest
import zoo

import peftc
from peftc.backends.bench import SCRIPT, bench, inputs_at, timing
from peftc.cli.main import run
from peftc.ground.diagnostics import PeftcError

CASE = ("bert", "base", "prompt", False)
FEW: dict[str, Any] = {"batches": (1, 3), "lengths": (6,), "rounds": 4}


def test_a_linked_export_beside_its_base_of_the_same_file():
    exported = linking.linked(*CASE)
    before = sorted(exported.folder.parent.iterdir())
    result = bench(linking.weightless(*CASE), exported.folder, **FEW)
    assert [(t.batch, t.length) for t in result.timings] == [(1, 6), (3, 6)]
    for one in result.timings:
        assert 0 < one.base_ms < 1e4
        assert one.low <= one.high
        assert min(one.ratio, one.least, one.cpu) > 0
    memory = result.memory
    prompt = sum(p.nbytes for p in peftc.trainable(linking.artifact(*CASE)[0]).values())
    assert memory.files > memory.base_files + prompt  # the base's own file is in both
    assert min(memory.own["private"], memory.base["private"]) > 0
    assert memory.own["peak"] > memory.own["private"]
    assert sorted(exported.folder.parent.iterdir()) == before


def test_figures_are_medians_and_quartiles_of_the_ratios_of_neighbours():
    base = [(1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 1.0)]
    own = [(2.0, 1.1), (3.0, 1.2), (2.0, 1.3), (1.5, 1.0)]
    one = timing(1, 8, base, own)
    assert (one.base_ms, one.ms, one.ratio) == (1000.0, 2000.0, 1.75)
    assert one.cpu == pytest.approx(1.15)
    assert (one.low, one.high) == (1.5, 2.0)
    assert one.least == 1.5


def test_calls_alternate_and_so_does_which_is_first():
    timed = runpy.run_path(str(SCRIPT))["timed"]
    seen: list[str] = []
    models = [lambda _feed, n=n: lambda: seen.append(n) for n in ("base", "own")]
    taken = timed(models, {"0": {}}, {"warm_up": 1, "rounds": 4})
    assert seen[2:] == ["base", "own", "own", "base", "base", "own", "own", "base"]
    assert [len(t) for t in taken["0"]] == [4, 4]


def test_the_script_imports_no_torch_of_its_own():
    assert "import torch" not in Path(SCRIPT).read_text()


def test_inputs_follow_the_export():
    given = inputs_at(linking.linked(*CASE), 2, 5)
    assert {n: v.shape for n, v in given.items()} == dict.fromkeys(given, (2, 5))
    assert set(given) == {"input_ids", "attention_mask", "token_type_ids"}
    assert given["attention_mask"].min() == 1


def test_the_command_prints_tables_and_data(capsys):
    folder = str(linking.linked(*CASE).folder)
    common = ["--base", folder, "--batch", "1", "--length", "6", "--rounds", "3"]
    assert run(["bench", folder, *common]) == 0
    text = capsys.readouterr().out
    assert "bench  onnx, 1 threads, 3 calls each, alternating" in text
    assert "batch 1, length 6" in text
    assert "private memory" in text
    assert run(["bench", folder, *common, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rounds"] == 3
    assert data["timings"][0]["ratio"] > 0


def test_another_format_and_pieces_alone_are_refused(tmp_path):
    graph = peftc.apply("lora", zoo.captured("bert", "sequence-classification"))
    peftc.export(graph, "peft", tmp_path / "peft")
    exported = linking.linked(*CASE)
    with pytest.raises(PeftcError, match=r"E412.* is of format peft, .* of onnx"):
        bench(tmp_path / "peft", exported.folder, **FEW)
    with pytest.raises(PeftcError, match=r"E412.*holds pieces without a model"):
        bench(graph, tmp_path / "peft", **FEW)
    with pytest.raises(PeftcError, match=r"E412.*its own base"):
        bench(zoo.captured("bert", "sequence-classification"), exported.folder, **FEW)


def test_a_call_lasts_until_a_gpu_is_done_with_it(monkeypatch):
    """Calls only begin the work there: each is waited for, those to warm up as well."""
    events: list[str] = []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: events.append("waited"))
    timed = runpy.run_path(str(SCRIPT))["timed"]
    timed([lambda _: lambda: events.append("called")], {"0": {}}, {"warm_up": 1, "rounds": 2})
    assert events == ["called", "waited"] * 3
