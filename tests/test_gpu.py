"""On a CUDA device: graphs, training, and exported files of every format that run there."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import reference
import torch
import zoo
from tolerances import EXPORT, PARITY

import peftc
from peftc.backends.bench import bench
from peftc.capture import capture
from peftc.capture.listing import fingerprint
from peftc.cli.main import run
from peftc.train import Rows, evaluate, train

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
FAMILIES = [("bert", "sequence-classification"), ("llama", "causal-lm"), ("t5", "seq2seq-lm")]
BERT, LLAMA, T5 = FAMILIES
SPECS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3},
    "houlsby": {"dim": 5},
    "prefix": {"tokens": 3},
    "prompt": {"tokens": 3},
    "ptuning2": {"tokens": 3},
    "ia3": {},
    "unipelt": {"rank": 3, "tokens": 4, "dim": 5},
}
# Kernels of a GPU add up in another order; the numbers of these models are below 10.
CLOSE = EXPORT[torch.float32]


@functools.cache
def base(family):
    """The capture of a model of one layer, made on the device."""
    return capture(zoo.build(*family, layers=1).to(DEVICE))


def applied(spec, family=BERT):
    """A graph with random pieces."""
    graph = peftc.apply(spec, base(family).clone(), set=SPECS[spec]).eval()
    reference.randomise(graph)
    return graph


def on_cpu(graph, spec, family=BERT):
    """The same graph, captured and kept on the CPU."""
    host = peftc.apply(spec, zoo.captured(*family, layers=1).clone(), set=SPECS[spec]).eval()
    host.load_state_dict({n: t.cpu() for n, t in graph.state_dict().items()})
    return host


def inputs(family=BERT, batch=3, length=9):
    """Inputs of the shared model, with padding, on the CPU."""
    return zoo.inputs(zoo.model(*family), batch, length)


def there(given):
    """The same on the device."""
    return {n: v.to(DEVICE) for n, v in given.items()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f[0])
@pytest.mark.parametrize("spec", list(SPECS))
def test_a_graph_on_the_device_equals_the_one_on_the_cpu(spec, family):
    graph = applied(spec, family)
    assert {p.device.type for p in graph.parameters()} == {DEVICE}
    host = on_cpu(graph, spec, family)
    given = inputs(family)
    with torch.no_grad():
        ours, theirs = graph(**there(given)).logits, host(**given).logits
    assert ours.device.type == DEVICE
    torch.testing.assert_close(ours.cpu(), theirs, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f[0])
@pytest.mark.parametrize("spec", list(SPECS))
def test_a_graph_has_one_fingerprint_on_every_device(spec, family):
    graph = applied(spec, family)
    assert fingerprint(graph) == fingerprint(on_cpu(graph, spec, family))


def test_a_graph_in_half_precision_is_near_the_one_in_full():
    model = zoo.build(*LLAMA, layers=1).to(DEVICE, torch.bfloat16)
    rounded = copy.deepcopy(model).float()
    half, full = [peftc.apply("lora", capture(m), set={"rank": 3}).eval() for m in (model, rounded)]
    trained = dict(applied("lora", LLAMA).peft_parameters())
    with torch.no_grad():
        for graph in (half, full):
            for name, parameter in graph.peft_parameters():
                parameter.copy_(trained[name].bfloat16())
    given = there(inputs(LLAMA))
    with torch.no_grad():
        ours, theirs = half(**given).logits, full(**given).logits
    assert ours.dtype == torch.bfloat16
    scale = theirs.abs().max()
    torch.testing.assert_close(ours.float() / scale, theirs / scale, **PARITY[torch.bfloat16])


def test_updates_equal_those_of_peft_on_the_device():
    from peft import LoraConfig, get_peft_model

    graph = applied("lora", LLAMA)
    config = LoraConfig(r=3, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    theirs = get_peft_model(zoo.build(*LLAMA, layers=1).to(DEVICE), config).eval()
    layer = theirs.base_model.model.model.layers[0].self_attn
    with torch.no_grad():
        for role, module in (("q", layer.q_proj), ("v", layer.v_proj)):
            for letter, name in (("A", "lora_A"), ("B", "lora_B")):
                weight = getattr(module, name)["default"].weight
                weight.copy_(graph.get_parameter(f"peft.qv.layer0_attn_{role}.{letter}"))
        given = there(inputs(LLAMA))
        torch.testing.assert_close(graph(**given).logits, theirs(**given).logits, **CLOSE)


@pytest.mark.parametrize("spec", list(SPECS))
def test_training_there_moves_the_pieces_and_not_the_base(spec):
    graph = applied(spec)
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


@pytest.mark.parametrize(
    ("kind", "spec", "family"),
    [
        *[(kind, "lora", BERT) for kind in ("onnx", "torchscript", "hf", "aoti")],
        *[(kind, "unipelt", LLAMA) for kind in ("onnx", "torchscript", "aoti")],
        *[(kind, "prefix", T5) for kind in ("onnx", "torchscript")],
    ],
    ids=lambda v: v if isinstance(v, str) else v[0],
)
def test_a_file_exported_there_runs_there(kind, spec, family, tmp_path):
    graph = applied(spec, family)
    exported = peftc.export(graph, kind, tmp_path / "out")
    assert exported.facts["device"] == DEVICE
    report = peftc.verify(graph, tmp_path / "out", tolerance=CLOSE["atol"])
    assert len({(r.batch, r.length) for r in report.rows}) >= 4
    assert report.ok, report


def cuda_outputs(folder, graph):
    """The logits of a deployment by its runtime on the device, and those of the graph."""
    import onnxruntime

    from peftc.runtime import Session

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    session = Session(folder, providers=["CUDAExecutionProvider"])
    assert session.session.get_providers()[0] == "CUDAExecutionProvider"
    given = inputs()
    with torch.no_grad():
        wanted = graph(**there(given)).logits.cpu()
    got = session(**{n: v.numpy() for n, v in given.items()})["logits"]
    return torch.from_numpy(got), wanted


@pytest.mark.parametrize("opset", [20, 24])
@pytest.mark.parametrize("spec", ["houlsby", "prefix"])
@pytest.mark.parametrize("made", ["cpu", "cuda"])
def test_the_onnx_file_runs_on_the_device_by_the_runtime(made, spec, opset, tmp_path):
    """Also one that was exported for a CPU, whose attention is in another layout."""
    graph = applied(spec)
    exported = on_cpu(graph, spec) if made == "cpu" else graph
    peftc.export(exported, "onnx", tmp_path / "out", weights="copy", opset=opset)
    torch.testing.assert_close(*cuda_outputs(tmp_path / "out", graph), **CLOSE)


def test_a_half_precision_onnx_file_runs_on_the_device(tmp_path):
    model = zoo.build(*BERT, layers=1).to(DEVICE, torch.float16)
    graph = peftc.apply("houlsby", capture(model), set={"dim": 5}).eval()
    peftc.export(graph, "onnx", tmp_path / "out", weights="copy")
    got, wanted = cuda_outputs(tmp_path / "out", graph)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, wanted, **EXPORT[torch.float16])


@pytest.mark.parametrize("spec", list(SPECS))
def test_torchscript_of_the_cpu_runs_on_the_device(spec, tmp_path):
    graph = peftc.apply(spec, zoo.captured(*BERT, layers=1).clone(), set=SPECS[spec])
    reference.randomise(graph)
    peftc.export(graph, "torchscript", tmp_path / "out")
    module = torch.jit.load(str(tmp_path / "out" / "model.pt"), map_location=DEVICE)
    given = inputs()
    order = [given[i.name] for i in graph.signature.inputs]
    with torch.no_grad():
        got = module(*[v.to(DEVICE) for v in order])
        wanted = graph.flat(*order)[0]
    got = got[0] if isinstance(got, tuple) else got
    assert got.device.type == DEVICE
    torch.testing.assert_close(got.cpu(), wanted, **CLOSE)


def test_a_file_is_timed_on_the_device_with_the_memory_that_it_takes_there(tmp_path):
    graph = applied("houlsby")
    peftc.export(graph, "torchscript", tmp_path / "out")
    result = bench(graph, tmp_path / "out", batches=(2,), lengths=(7,), rounds=5)
    assert len(result.timings) == 1
    assert result.memory.own["device"] > 0
    assert result.memory.base["device"] > 0


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
        assert run(["export", trained, "--to", kind, "--device", "cuda"]) == 0
        assert run(["verify", trained, str(out / "runs" / "001" / kind)]) == 0
        assert run(["bench", str(out / "runs" / "001" / kind), "--rounds", "3"]) == 0
