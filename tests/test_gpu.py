"""On a CUDA device: graphs, training, and exported files of every format that run there."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
import zoo

import peftc
from peftc.capture import capture
from peftc.cli.main import run
from peftc.train import Rows, evaluate, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
FAMILY = ("bert", "sequence-classification")
SPECS: dict[str, dict[str, Any]] = {
    "lora": {},
    "houlsby": {},
    "prefix": {"tokens": 3},
    "prompt": {"tokens": 3},
    "ia3": {},
}
# Kernels of a GPU add up in another order.
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-3}


@pytest.fixture(scope="module")
def model():
    """A model of one layer on the device."""
    return zoo.build(*FAMILY, layers=1).to("cuda")


@pytest.fixture(scope="module")
def base(model):
    """Its capture, made on the device."""
    return capture(model)


def applied(spec, base):
    """A graph with random pieces."""
    graph = peftc.apply(spec, base, set=SPECS[spec])
    generator = torch.Generator().manual_seed(0)
    for _, parameter in graph.peft_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.3 * noise.to(parameter))
    return graph


@pytest.mark.parametrize("spec", list(SPECS))
def test_a_graph_on_the_device_equals_the_one_on_the_cpu(spec, base):
    graph = applied(spec, base)
    assert {p.device.type for p in graph.parameters()} == {"cuda"}
    host = peftc.apply(spec, zoo.build(*FAMILY, layers=1), set=SPECS[spec])
    reference.randomise(host)
    host.load_state_dict({n: t.cpu() for n, t in graph.state_dict().items()})
    given = zoo.inputs(zoo.model(*FAMILY), 3, 9)
    with torch.no_grad():
        ours = graph(**{n: v.to("cuda") for n, v in given.items()}).logits
        theirs = host(**given).logits
    assert ours.device.type == "cuda"
    torch.testing.assert_close(ours.cpu(), theirs, **CLOSE)


@pytest.mark.parametrize("spec", list(SPECS))
def test_training_there_moves_the_pieces_and_not_the_base(spec, base):
    graph = applied(spec, base)
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(4, 90, (4 + k % 5,), generator=generator).tolist() for k in range(12)]
    rows = Rows(
        [
            {"input_ids": t, "attention_mask": [1] * len(t), "labels": k % 5}
            for k, t in enumerate(ids)
        ]
    )
    before = {n: p.detach().clone() for n, p in graph.named_parameters()}
    train(graph, rows, pad=0, steps=6, batch=4, lr=1e-2)
    moved = {n for n, p in graph.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= set(peftc.trainable(graph))
    assert {n for n, _ in graph.peft_parameters()} <= moved
    assert evaluate(graph, rows, pad=0)["loss"] > 0


@pytest.mark.parametrize("kind", ["onnx", "torchscript", "hf", "aoti"])
def test_a_file_exported_there_runs_there(kind, base, tmp_path):
    graph = applied("lora", base)
    exported = peftc.export(graph, kind, tmp_path / "out")
    assert exported.facts["device"] == "cuda"
    report = peftc.verify(graph, tmp_path / "out", tolerance=CLOSE["atol"])
    assert len({(r.batch, r.length) for r in report.rows}) >= 4
    assert report.ok, report


def test_the_onnx_file_runs_on_the_device_by_the_runtime(base, tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    from peftc.runtime import Session

    graph = applied("houlsby", base)
    peftc.export(graph, "onnx", tmp_path / "out", weights="copy")
    session = Session(tmp_path / "out", providers=["CUDAExecutionProvider"])
    assert session.session.get_providers()[0] == "CUDAExecutionProvider"
    given = zoo.inputs(zoo.model(*FAMILY), 3, 9)
    with torch.no_grad():
        wanted = graph(**{n: v.to("cuda") for n, v in given.items()}).logits.cpu()
    got = torch.from_numpy(session(**{n: v.numpy() for n, v in given.items()})["logits"])
    torch.testing.assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("spec", list(SPECS))
def test_torchscript_of_the_cpu_runs_on_the_device(spec, tmp_path):
    graph = peftc.apply(spec, zoo.captured(*FAMILY), set=SPECS[spec])
    reference.randomise(graph)
    peftc.export(graph, "torchscript", tmp_path / "out")
    module = torch.jit.load(str(tmp_path / "out" / "model.pt"), map_location="cuda")
    given = zoo.inputs(zoo.model(*FAMILY), 3, 9)
    order = [given[i.name] for i in graph.signature.inputs]
    with torch.no_grad():
        got = module(*[v.to("cuda") for v in order])
        wanted = graph.flat(*order)[0]
    got = got[0] if isinstance(got, tuple) else got
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), wanted, **CLOSE)


def test_the_commands_take_the_device(model_folder, tmp_path):
    out = tmp_path / "out"
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(f'{{"text": "the cat sat", "label": {k % 5}}}\n' for k in range(8)), "utf-8"
    )
    assert run(["apply", "lora", str(model_folder), "-o", str(out)]) == 0
    assert run(["train", str(out), "--data", str(data), "--steps", "2", "--device", "cuda"]) == 0
    trained = str(out / "runs" / "001")
    for kind in ("torchscript", "onnx"):
        assert run(["export", trained, "--to", kind, "--device", "cuda", "--tol", "1e-3"]) == 0
