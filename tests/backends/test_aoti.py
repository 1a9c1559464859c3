"""AOTInductor packages: one compilation, run without peftc, its pieces swapped by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import linking
import numpy as np
import pytest
import torch
import torch._inductor.config
import zoo
from safetensors.torch import load_file

import peftc
from peftc.backends import backend
from peftc.backends.aoti import CONSTANTS, compiled, write_beside
from peftc.backends.export import folded_for
from peftc.ground.diagnostics import PeftcError

CASE = ("bert", "base", "lora", False)
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
import run_aoti
folder, other, home = map(Path, sys.argv[1:4])
model = run_aoti.load(folder)
with np.load(home / "inputs.npz") as file:
    given = [run_aoti.torch.from_numpy(file[n]) for n in file.files]
first = model(*given)[0].clone()
run_aoti.give(model, other)
second = model(*given)[0].clone()
run_aoti.give(model, folder)
np.savez(home / "outputs.npz", first=first, second=second, again=model(*given)[0])
print([m for m in sys.modules if m.split(".")[0] in ("peftc", "transformers")])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(graph, its linked package): a model of one layer, its wrapper compiled in a hurry."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    graph = linking.artifact(*CASE)[0]
    out = tmp_path_factory.mktemp("aoti") / "out"
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        exported = peftc.export(graph, "aoti", out, weights="link", fold="unmerged")
    return graph, exported


def test_the_package_equals_the_graph_and_holds_no_weight(made):
    graph, exported = made
    report = peftc.verify(graph, exported)
    assert len({(r.batch, r.length) for r in report.rows}) >= 4
    assert report.ok, report
    base = linking.base(*CASE[:2], CASE[3]) / "model.safetensors"
    assert (exported.folder / "model.safetensors").samefile(base)
    listed = json.loads((exported.folder / CONSTANTS).read_text())
    own = load_file(exported.folder / "peft.safetensors")
    inside = {n for n, one in listed.items() if one["file"] == "peft.safetensors"}
    assert set(own) == inside
    assert {n for n in inside if n.startswith("peft.")} == set(exported.facts["peft"])
    assert exported.facts["peft"]


def test_pieces_of_another_export_are_swapped_in_and_out(made, tmp_path):
    graph, exported = made
    other = tmp_path / "other"
    shutil.copytree(exported.folder, other, copy_function=shutil.copy)
    changed = graph.clone(pieces=True)
    for _, tensor in changed.peft_parameters():
        tensor.data = tensor.data * 1.5 + 0.1
    folded = folded_for(changed, backend("aoti"), "unmerged", False)
    stored = load_file(exported.folder / "peft.safetensors")
    own = dict(folded.named_parameters())
    tensors = {n: own[n].detach() if n.startswith("peft.") else t for n, t in stored.items()}
    write_beside(tensors, other, {})
    given = zoo.inputs(linking.model(*CASE[:2]), 3, 9)
    order = [given[i.name] for i in graph.signature.inputs]
    np.savez(tmp_path / "inputs.npz", *[v.numpy() for v in order])
    command = [sys.executable, "-P", "-c", SCRIPT, str(exported.folder), str(other), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    with torch.no_grad():
        wanted = [g.flat(*order)[0] for g in (graph, changed, graph)]
    assert (wanted[0] - wanted[1]).abs().max() > 1e-2
    with np.load(tmp_path / "outputs.npz") as file:
        for key, value in zip(("first", "second", "again"), wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(file[key]), value, rtol=0, atol=1e-4)


def test_a_graph_that_cannot_be_compiled_is_refused_with_the_compilers_words(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("C++ compile error\n  undefined thing")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(PeftcError) as caught:
        compiled(linking.artifact(*CASE)[0], tmp_path / "model.pt2", inside=True)
    assert str(caught.value) == (
        "error[E414]: AOTInductor cannot compile this graph: RuntimeError\n"
        "  = note: C++ compile error\n"
        "  = note: undefined thing\n"
        "  = help: export to onnx or torchscript instead"
    )


def test_without_a_compiler_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PeftcError, match=r"E413.*there is no `no-such-compiler`"):
        peftc.export(linking.artifact(*CASE)[0], "aoti", tmp_path / "out")
    assert not any(tmp_path.iterdir())
