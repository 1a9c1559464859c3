"""E4xx: exports."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch
import zoo
from messages.cases import ONE, Here, case
from messages.modeling_odd import OddConfig, OddModel

import peftc
from peftc.backends.bench import bench
from peftc.backends.export import FACTS
from peftc.backends.weights import link
from peftc.capture import capture
from peftc.capture.program import Program


def graph(here: Here) -> Program:
    """A graph with something in it."""
    return peftc.apply("lora", here.program)


@case("E401", "an unknown format")
def _(here: Here):
    here.run("export", "out", "--to", "coreml")


@case("E402", "merging what has a nonlinearity")
def _(here: Here):
    here.check(ONE + "export: {fold: [a]}\n")


@case("E402", "merging what stands behind a gate that reads")
def _(here: Here):
    here.check(
        "peftc: 1\nname: n\ninsert:\n  - id: a\n    at: attn.q\n"
        "    delta: {low_rank: {rank: 2}}\n    compose: {add: {gate: {reads: x}}}\n"
        "export: {fold: [a]}\n"
    )


@case("E402", "merging an update that reads what it changes")
def _(here: Here):
    here.check(
        "peftc: 1\nname: n\ninsert:\n  - id: a\n    at: attn.q\n    form: sequential\n"
        "    delta: {low_rank: {rank: 2}}\nexport: {fold: [a]}\n"
    )


def hide(here: Here, name: str) -> None:
    """A package that is not installed."""
    find = importlib.util.find_spec
    here.monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a)
    )


@case("E403", "the packages of a format")
def _(here: Here):
    hide(here, "onnxruntime")
    peftc.export(graph(here), "onnx", "onnx")


@case("E403", "the packages of training")
def _(here: Here):
    from peftc.train import Rows, train

    hide(here, "accelerate")
    train(graph(here), Rows([]), pad=0, steps=1)


@torch.library.custom_op("messages::odd", mutates_args=())
def odd(x: torch.Tensor, how: str) -> torch.Tensor:
    """An operation that no runtime has."""
    return x.clone()


@odd.register_fake
def _(x, how):
    return torch.empty_like(x)


@case("E404", "an operation that TorchScript does not have")
def _(here: Here):
    program = capture(OddModel(OddConfig()))
    outputs: Any = program.graph.output_node().args[0]
    returned = outputs[0]
    with program.graph.inserting_after(returned):
        step = program.graph.call_function(torch.ops.messages.odd.default, (returned, "way"))
    step.meta = dict(returned.meta)
    program.graph.output_node().replace_input_with(returned, step)
    program.recompile()
    peftc.export(program, "torchscript", "out")


@case("E405", "fold")
def _(here: Here):
    peftc.export(graph(here), "torchscript", "out", fold="all")


@case("E406", "a file that its runtime refuses")
def _(here: Here):
    peftc.export(graph(here), "onnx", "out")
    Path("out/model.onnx").write_bytes(b"none")
    facts = json.loads(Path("out", FACTS).read_text()) | {"files": {}}
    Path("out", FACTS).write_text(json.dumps(facts))
    peftc.verify(graph(here), "out")


@case("E415", "a file of another artifact")
def _(here: Here):
    peftc.export(graph(here), "torchscript", "out")
    peftc.verify(zoo.captured("bert", "token-classification"), "out")


@case("E407", "an opset")
def _(here: Here):
    peftc.export(graph(here), "onnx", "onnx", opset=17)


@case("E408", "what another library cannot express")
def _(here: Here):
    peftc.export(peftc.apply("pfeiffer", here.program), "peft", "exported")


@case("E411", "an adapter and a prefix in a merged checkpoint")
def _(here: Here):
    peftc.export(peftc.apply("mam", here.program, set={"tokens": 5}), "hf", "exported")


@case("E411", "a model of the user's own")
def _(here: Here):
    peftc.export(capture(OddModel(OddConfig())), "hf", "exported")


@case("E412", "an artifact that is none")
def _(here: Here):
    peftc.export(graph(here), "peft", "exported")
    here.run("bench", "exported", "--artifact", "model")


@case("E412", "pieces without a model")
def _(here: Here):
    peftc.export(graph(here), "peft", "exported")
    bench(graph(here), "exported")


@case("E413", "no compiler")
def _(here: Here):
    here.monkeypatch.setenv("CXX", "clang++-99")
    peftc.export(graph(here), "aoti", "out")


@case("E414", "a compiler that stops")
def _(here: Here):
    def stop(*_args, **_options):
        raise RuntimeError("C++ compile error\n\nfatal error: omp.h: No such file or directory")

    here.monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", stop)
    here.monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    peftc.export(graph(here), "aoti", "out")


@case("E405", "pieces apart in a merged checkpoint")
def _(here: Here):
    peftc.export(graph(here), "hf", "out", fold="none")


@case("E410", "a base in memory alone")
def _(here: Here):
    peftc.export(graph(here), "onnx", "onnx", weights="link")


@case("E410", "an output on another disk")
def _(here: Here):
    def elsewhere(*_paths):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    here.monkeypatch.setattr(os, "link", elsewhere)
    link([Path("model/model.safetensors")], Path("out"))


@case("E409", "weights")
def _(here: Here):
    peftc.export(graph(here), "onnx", "onnx", weights="symlink")


@case("E409", "linked weights in a format that has its own")
def _(here: Here):
    peftc.export(graph(here), "torchscript", "out", weights="link")


@case("E409", "a layout")
def _(here: Here):
    peftc.export(graph(here), "onnx", "out", layout="tritn")


@case("E409", "a name that Triton does not take")
def _(here: Here):
    peftc.export(graph(here), "onnx", "out", layout="triton", name="a/b")
