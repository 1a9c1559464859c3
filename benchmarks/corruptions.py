"""Corruptions planted in exported files, and whether `peftc verify` sees them.

    nice -n 10 python benchmarks/corruptions.py              # goes on where it stopped
    nice -n 10 python benchmarks/corruptions.py onnx bert    # what has these words in its name
    nice -n 10 python benchmarks/corruptions.py untouched hf

Writes benchmarks/corruptions.jsonl and docs/verify.md; delete the first to start anew.

Models have two layers, small sizes and random weights of a standard deviation of 0.2, pieces
random numbers. Each corruption is made in a copy of an export, whose `peftc.export.json` is made
to fit, so that no hash gives it away: what is left to see it is the comparison with the graph.
The second table is of exports that nobody touched: every one has to pass.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "corruptions.jsonl"
TABLE = ROOT / "docs" / "verify.md"
Change = Callable[[Path], None]
BERT, GPT2 = ("bert", "sequence-classification"), ("gpt2", "causal-lm")
LLAMA, T5 = ("llama", "causal-lm"), ("t5", "seq2seq-lm")
VIT = ("vit", "image-classification")


@dataclass(frozen=True)
class Export:
    """How a file is made: of which model, with which spec, in which format."""

    model: tuple[str, str]
    spec: str
    kind: str
    fold: str = "auto"
    weights: str | None = None
    dtype: str = "float32"

    def __str__(self) -> str:
        """A few words."""
        more = [w for w in (self.weights, self.fold) if w not in (None, "auto")]
        more += [self.dtype] if self.dtype != "float32" else []
        return " ".join((self.kind, self.model[0], self.spec, *more))


SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "dora": {"rank": 4}, "houlsby": {"dim": 6}, "pfeiffer": {"dim": 6},
    "parallel": {"dim": 6}, "prefix": {"tokens": 5, "hidden": 8}, "prompt": {"tokens": 5},
    "ptuning2": {"tokens": 5}, "mam": {"tokens": 5, "hidden": 8, "dim": 6},
    "unipelt": {"rank": 4, "tokens": 5, "hidden": 8, "dim": 6},
}  # fmt: skip
TASKS: dict[str, Any] = {
    "peftc": 1,
    "name": "tasks",
    "tasks": {
        "one": {"head": {"sequence_classification": {"labels": 2}}},
        "two": {"head": {"sequence_classification": {"labels": 3}}},
        "three": {"head": {"token_classification": {"labels": 4}}},
    },
    "insert": [
        {"id": "kv", "at": "attn.kv", "share": "per_task", "delta": {"prefix": {"tokens": 4}}}
    ],
}


def graph_of(one: Export) -> Any:
    """The graph, random numbers in its pieces."""
    import zoo

    import peftc
    from peftc.capture import capture

    spec: Any = TASKS if one.spec == "tasks" else one.spec
    family = ("bert", "base") if one.spec == "tasks" else one.model
    model = zoo.build(*family, layers=2)
    base = capture(model.to(getattr(torch, one.dtype)))
    graph = peftc.apply(spec, base, set=SETTINGS.get(one.spec, {})).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in peftc.trainable(graph).values():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.add_(noise.to(parameter.dtype))
    folder = Path(tempfile.mkdtemp(prefix="peftc-base-", dir=HOME[0]))
    model.save_pretrained(folder)
    graph.meta["peftc.applied"].reference = str(folder)
    return graph


HOME: list[str | None] = [None]  # the folder of a run, set once it has one


# What is changed in a file.


def settle(folder: Path) -> None:
    """Let the facts of an export be those of its files as they are."""
    from peftc.backends.export import file_facts

    path = folder / "peftc.export.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["files"] = {n: file_facts(folder / n, {}) for n in facts["files"]}
    path.write_text(json.dumps(facts), encoding="utf-8")


def tensor(name: str, by: Callable[[torch.Tensor], Any]) -> Change:
    """Change the tensor whose name ends so, in place, wherever the format has it."""

    def change(folder: Path) -> None:
        if (folder / "model.pt").exists():
            module = torch.jit.load(str(folder / "model.pt"))
            found = {n: t for n, t in module.named_buffers() if n.endswith(name)}
            by(only(found))
            module.save(str(folder / "model.pt"))
            return
        with stored(folder, name) as value:
            by(value)

    return change


def only(found: dict[str, Any]) -> Any:
    """The one that was meant."""
    if len(found) != 1:
        raise RuntimeError(f"not one tensor, but {list(found)}")
    return next(iter(found.values()))


class stored:
    """A tensor of a safetensors file, written back as it is left."""

    def __init__(self, folder: Path, name: str) -> None:
        from peftc.capture.weight_files import read_header

        places = {n: p for f in folder.glob("*.safetensors") for n, p in read_header(f).items()}
        self.place = only({n: p for n, p in places.items() if n.endswith(name)})

    def __enter__(self) -> torch.Tensor:
        self.value = self.place.read()
        return self.value

    def __exit__(self, *_: object) -> None:
        with open(self.place.file, "r+b") as file:
            file.seek(self.place.offset)
            file.write(self.value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def swapped(a: str, b: str) -> Change:
    """Let two tensors of one shape have one another's numbers."""

    def change(folder: Path) -> None:
        kept: list[torch.Tensor] = []
        tensor(a, lambda t: kept.append(t.clone()))(folder)
        tensor(b, lambda t: (kept.append(t.clone()), t.copy_(kept[0])))(folder)
        tensor(a, lambda t: t.copy_(kept[1]))(folder)

    return change


def zero(t: torch.Tensor) -> None:
    """All of it."""
    t.zero_()


def off(by: float) -> Callable[[torch.Tensor], Any]:
    """All numbers larger by so much."""
    return lambda t: t.add_(by)


def times(by: float) -> Callable[[torch.Tensor], Any]:
    """All numbers so many times as large."""
    return lambda t: t.mul_(by)


def row(k: int) -> Callable[[torch.Tensor], Any]:
    """One row of zeros."""
    return lambda t: t[k].zero_()


def half(t: torch.Tensor) -> None:
    """Half of the rows zero."""
    t[len(t) // 2 :].zero_()


def heads(width: int) -> Callable[[torch.Tensor], Any]:
    """The first two heads of a projection in one another's place."""

    def change(t: torch.Tensor) -> None:
        t[: 2 * width] = torch.cat([t[width : 2 * width], t[:width]])

    return change


def onnx_(edit: Callable[[Any], Any]) -> Change:
    """Change the graph of an ONNX file."""

    def change(folder: Path) -> None:
        import onnx

        model = onnx.load(folder / "model.onnx", load_external_data=False)
        before = model.SerializeToString()
        edit(model.graph)
        if model.SerializeToString() == before:
            raise RuntimeError("nothing was changed")
        onnx.save(model, folder / "model.onnx")

    return change


def nodes(graph: Any, kind: str) -> list[Any]:
    """The nodes of a kind."""
    return [n for n in graph.node if n.op_type == kind]


def setting(kind: str, name: str, value: Any, which: int = 0) -> Change:
    """An attribute of a node otherwise."""
    import onnx

    def edit(graph: Any) -> None:
        node = nodes(graph, kind)[which]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return onnx_(edit)


def operation(kind: str, other: str, which: int = 0) -> Change:
    """Another operation in the place of one, without its attributes."""

    def edit(graph: Any) -> None:
        node = nodes(graph, kind)[which]
        node.op_type = other
        del node.attribute[:]

    return onnx_(edit)


def dropped(which: int) -> Change:
    """An addition that gives its first summand."""

    def edit(graph: Any) -> None:
        node = nodes(graph, "Add")[which]
        node.op_type = "Identity"
        del node.input[1:]

    return onnx_(edit)


def constant(near: float, value: float, *, also: bool = False) -> Change:
    """A constant of the graph otherwise: the first that is near a number, or all of them."""
    import onnx

    def edit(graph: Any) -> None:
        holders = [a.t for n in nodes(graph, "Constant") for a in n.attribute if a.name == "value"]
        for t in (*holders, *(i for i in graph.initializer if not i.external_data)):
            array = onnx.numpy_helper.to_array(t)
            if array.size == 1 and np.isclose(float(array.reshape(-1)[0]), near, rtol=1e-3, atol=0):
                made = np.full(array.shape, value, array.dtype)
                t.CopyFrom(onnx.numpy_helper.from_array(made, t.name))
                if not also:
                    return

    return onnx_(edit)


def inputs(kind: str, a: int, b: int, which: int = 0) -> Change:
    """Two inputs of a node in one another's place."""

    def edit(graph: Any) -> None:
        node = nodes(graph, kind)[which]
        node.input[a], node.input[b] = node.input[b], node.input[a]

    return onnx_(edit)


def unmasked(graph: Any) -> None:
    """The first attention without its mask."""
    nodes(graph, "Attention")[0].input[3] = ""


def code(pattern: str, new: str) -> Change:
    """The text of a TorchScript graph, its first place of a pattern."""

    def change(folder: Path) -> None:
        path, made = folder / "model.pt", io.BytesIO()
        done = 0
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(made, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                if name.endswith(".py") and not done:
                    text, done = re.subn(pattern, new, data.decode(), count=1)
                    data = text.encode()
                target.writestr(name, data)
        if not done:
            raise RuntimeError(f"no {pattern!r} in the code")
        path.write_bytes(made.getvalue())

    return change


GELU = (r"torch\.gelu\((\w+)\)", r'torch.gelu(\1, approximate="tanh")')


def config(name: str, key: str, value: Any) -> Change:
    """An entry of a checkpoint's configuration."""

    def change(folder: Path) -> None:
        path = folder / name
        data = json.loads(path.read_text(encoding="utf-8"))
        if data[key] == value:
            raise RuntimeError("nothing was changed")
        data[key] = value
        path.write_text(json.dumps(data), encoding="utf-8")

    return change


def packaged(name: str) -> Change:
    """The bytes of a weight in a compiled package, as zeros."""

    def change(folder: Path) -> None:
        path = folder / "model.pt2"
        data = bytearray(path.read_bytes())
        wanted = PACKAGED[name].detach().contiguous().numpy().tobytes()
        place = data.find(wanted)
        if place < 0:
            raise RuntimeError("the weight is not there")
        data[place : place + len(wanted)] = bytes(len(wanted))
        path.write_bytes(data)

    return change


PACKAGED: dict[str, torch.Tensor] = {}

B = Export(BERT, "lora", "onnx", weights="copy")
BU = Export(BERT, "lora", "onnx", "unmerged", "copy")
BH = Export(BERT, "houlsby", "onnx", weights="copy")
L = Export(LLAMA, "lora", "onnx", "unmerged", "copy")
G = Export(GPT2, "prefix", "onnx", weights="copy")
T = Export(T5, "ia3", "onnx", "unmerged", "copy")
V = Export(VIT, "lora", "onnx", weights="copy")
TS = Export(BERT, "lora", "torchscript")
TL = Export(LLAMA, "prefix", "torchscript")
TT = Export(BERT, "tasks", "torchscript")
OT = Export(BERT, "tasks", "onnx", weights="copy")
H = Export(BERT, "lora", "hf")
HL = Export(LLAMA, "lora", "hf")
P = Export(LLAMA, "lora", "peft")
PP = Export(LLAMA, "prefix", "peft")
A = Export(BERT, "lora", "aoti", weights="copy")
WORDS, POSITIONS = "word_embeddings.weight", "position_embeddings.weight"
LAYER = "encoder.layer.1."

CORRUPTIONS: list[tuple[Export, str, Change]] = [
    # Of one file, as they were first found not to be seen.
    (B, "half of the vocabulary's embeddings zero", tensor(WORDS, half)),
    (B, "the embedding of one id zero", tensor(WORDS, row(57))),
    (B, "the embedding of the last id zero", tensor(WORDS, row(-1))),
    (B, "a layer's query zero", tensor(LAYER + "attention.self.query.weight", zero)),
    (B, "a norm's weights off by 1e-3", tensor(LAYER + "output.LayerNorm.weight", off(1e-3))),
    (B, "a norm's biases off by 1e-3", tensor("embeddings.LayerNorm.bias", off(1e-3))),
    (B, "a bias zero", tensor(LAYER + "intermediate.dense.bias", zero)),
    (B, "two heads of the values swapped", tensor(LAYER + "attention.self.value.weight", heads(6))),
    (B, "the last position's embedding zero", tensor(POSITIONS, row(-1))),
    (B, "the second token type zero", tensor("token_type_embeddings.weight", row(1))),
    (B, "a norm's epsilon 1e-5", setting("LayerNormalization", "epsilon", 1e-5)),
    (B, "GELU by tanh", setting("Gelu", "approximate", "tanh", 1)),
    (B, "attention's scale 1 % larger", setting("Attention", "scale", 0.408248 * 1.01)),
    (B, "an attention without its mask", onnx_(unmasked)),
    (B, "a residual addition dropped", dropped(-1)),
    (B, "a row of the classifier with the other sign", tensor(
        "classifier.weight", lambda t: t[2].neg_())),
    (B, "one number of a weight off by 1e-3", tensor(
        LAYER + "output.dense.weight", lambda t: t[3, 7].add_(1e-3))),
    # Of others.
    (B, "two layers' values swapped", swapped(
        "layer.0.attention.self.value.weight", "layer.1.attention.self.value.weight")),
    (B, "queries and keys of an attention swapped", inputs("Attention", 0, 1)),
    (B, "a pooler by another function", operation("Tanh", "Sigmoid")),
    (BU, "an update's A zero", tensor("layer1_attn_q.A", zero)),
    (BU, "an update 1 % larger", tensor("layer0_attn_v.B", times(1.01))),
    (BU, "two layers' updates swapped", swapped("layer0_attn_q.B", "layer1_attn_q.B")),
    (BH, "an adapter's up projection zero", tensor("layer1_ffn_out.up.weight", zero)),
    (BH, "an adapter's bias off by 1e-3", tensor("layer0_ffn_out.down.bias", off(1e-3))),
    (BH, "two layers' adapters swapped", swapped(
        "layer0_attn_out.down.weight", "layer1_attn_out.down.weight")),
    (L, "two key heads swapped", tensor("layers.1.self_attn.k_proj.weight", heads(10))),
    (L, "RMSNorm's epsilon 1e-5", constant(1e-6, 1e-5)),
    (L, "the causal mask one token short", operation("LessOrEqual", "Less")),
    (L, "the angles' frequencies 0.1 % larger", tensor("rotary_emb.inv_freq", times(1.001))),
    (L, "one token's row of the head zero", tensor("lm_head.weight", row(-2))),
    (L, "SiLU's sigmoid hard", operation("Sigmoid", "HardSigmoid")),
    (L, "a feed-forward gate zero", tensor("layers.0.mlp.gate_proj.weight", zero)),
    (L, "a residual addition dropped", dropped(-2)),
    (L, "the last norm's epsilon dropped", dropped(-1)),
    (L, "cosines and sines swapped", operation("Cos", "Sin")),
    (G, "a constant of GELU 0.0447", constant(0.044715, 0.0447)),
    (G, "one position's embedding zero", tensor("wpe.weight", row(40))),
    (G, "a fused projection's keys zero", tensor(
        "h.1.attn.c_attn.weight", lambda t: t[:, 24:48].zero_())),
    (G, "a residual addition dropped", dropped(-1)),
    (G, "a prefix's keys zero", tensor("layer0_attn_kv.key", zero)),
    (G, "two layers' prefixes swapped", swapped("layer0_attn_kv.value", "layer1_attn_kv.value")),
    (T, "one row of the relative positions zero", tensor(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", row(9))),
    (T, "the last bucket of the distances lower", constant(15.0, 14.0)),
    (T, "one number of a vector 0.1 % larger", tensor(
        "encoder_layer1_attn_k.l", lambda t: t.reshape(-1)[3].mul_(1.001))),
    (T, "cross attention's keys zero", tensor(
        "decoder.block.1.layer.1.EncDecAttention.k.weight", zero)),
    (T, "what is hidden at -1 and not at -inf", onnx_(lambda graph: mask_to(graph, -1.0))),
    (T, "ReLU dropped", operation("Relu", "Identity", 2)),
    (V, "a patch filter zero", tensor("projection.weight", row(5))),
    (V, "the class token zero", tensor("cls_token", zero)),
    (V, "one position's embedding off by 1e-3", tensor(
        "position_embeddings", lambda t: t[0, 4].add_(1e-3))),
    (TS, "half of the vocabulary's embeddings zero", tensor(WORDS, half)),
    (TS, "a layer's query zero", tensor(LAYER + "attention.self.query.weight", zero)),
    (TS, "a norm's weights off by 1e-3", tensor(
        LAYER + "attention.output.LayerNorm.weight", off(1e-3))),
    (TS, "a norm's epsilon 1e-5", code("9.9999999999999998e-13", "1.0e-05")),
    (TS, "GELU by tanh", code(*GELU)),
    (TS, "one position's embedding zero", tensor(POSITIONS, row(33))),
    (TL, "a prefix's values zero", tensor("layer1_attn_kv.value", zero)),
    (TL, "RMSNorm's epsilon 1e-5", code("9.9999999999999995e-07", "1.0e-05")),
    (TL, "attention's scale 1 % larger", code("scale=0.316227766", "scale=0.3194")),
    (TT, "two tasks' prefixes swapped", swapped(
        "layer1_attn_kv.one.key", "layer1_attn_kv.two.key")),
    (OT, "two tasks' prefixes swapped", swapped(
        "layer0_attn_kv.one.key", "layer0_attn_kv.two.key")),
    (OT, "one number of a task's head off by 1e-3", tensor(
        "two.linear.weight", lambda t: t[1, 1].add_(1e-3))),
    (H, "the embedding of one id zero", tensor(WORDS, row(12))),
    (H, "a norm's weights off by 1e-3", tensor(LAYER + "output.LayerNorm.weight", off(1e-3))),
    (H, "the second token type zero", tensor("token_type_embeddings.weight", row(1))),
    (H, "a norm's epsilon in the configuration", config("config.json", "layer_norm_eps", 1e-5)),
    (H, "another activation in the configuration", config("config.json", "hidden_act", "gelu_new")),
    (HL, "an update left out", tensor("layers.0.self_attn.q_proj.weight", times(1.0005))),
    (P, "lora_alpha", config("adapter_config.json", "lora_alpha", 17)),
    (P, "an update's A zero", tensor("layers.1.self_attn.q_proj.lora_A.weight", zero)),
    (P, "two layers' updates swapped", swapped(
        "layers.0.self_attn.v_proj.lora_B.weight", "layers.1.self_attn.v_proj.lora_B.weight")),
    (PP, "one token of a prefix zero", tensor("prompt_embeddings", row(2))),
    (A, "a layer's keys zero", packaged("bert.encoder.layer.1.attention.self.key.weight")),
    (A, "a norm's weights zero", packaged("bert.encoder.layer.1.output.LayerNorm.weight")),
]  # fmt: skip


def mask_to(graph: Any, value: float) -> None:
    """What stands where a mask hides, otherwise."""
    import onnx

    hides = nodes(graph, "Where")
    names = {n.input[2] for n in hides if "Attention" in {r.op_type for r in readers(graph, n)}}
    for node in nodes(graph, "Constant"):
        if node.output[0] in names:
            t = node.attribute[0].t
            array = np.full(onnx.numpy_helper.to_array(t).shape, value, "float32")
            t.CopyFrom(onnx.numpy_helper.from_array(array, t.name))


def readers(graph: Any, node: Any) -> list[Any]:
    """The nodes that read what one gives."""
    return [n for n in graph.node if node.output[0] in n.input]


# Exports that nobody touched.
SPECS = ("houlsby", "pfeiffer", "parallel", "prefix", "prompt", "ptuning2", "mam", "unipelt",
         "lora", "dora", "ia3", "bitfit")  # fmt: skip
UNTOUCHED = [
    *(Export(m, s, k) for k in ("onnx", "torchscript") for m in (BERT, LLAMA) for s in SPECS),
    *(Export(m, s, k) for k in ("onnx", "torchscript") for m in (GPT2, T5)
      for s in ("mam", "prompt", "dora", "ia3")),
    *(Export(VIT, s, "onnx") for s in ("lora", "prefix", "houlsby")),
    *(Export(m, s, "onnx", f, w) for m in (BERT, LLAMA) for s, f in
      (("lora", "unmerged"), ("mam", "none"), ("lora", "auto")) for w in ("link", "copy")),
    *(Export(m, s, "hf") for m in (BERT, GPT2, LLAMA, T5, VIT) for s in ("lora", "dora", "bitfit")),
    *(Export(m, "lora", "peft") for m in (BERT, GPT2, LLAMA, T5)),
    *(Export(m, "prefix", "peft") for m in (GPT2, LLAMA)),
    *(Export(BERT, "tasks", k) for k in ("onnx", "torchscript")),
    *(Export(m, s, k, dtype=d) for m in (BERT, LLAMA) for s in ("lora", "mam")
      for k, d in (("onnx", "float16"), ("torchscript", "float16"), ("torchscript", "bfloat16"),
                   ("hf", "bfloat16")) if (s, k) != ("mam", "hf")),
    Export(BERT, "lora", "aoti", weights="copy"), Export(LLAMA, "mam", "aoti"),
]  # fmt: skip


def made(exports: list[Export], home: Path) -> Iterator[tuple[Export, Any, Path]]:
    """Each export, with its graph."""
    import peftc
    from peftc.ground.diagnostics import PeftcError

    graphs: dict[tuple[Any, ...], Any] = {}
    for k, one in enumerate(exports):
        key = (one.model, one.spec, one.dtype)
        folder = home / str(k)
        try:
            if key not in graphs:
                graphs = {key: graph_of(one)}
            peftc.export(graphs[key], one.kind, folder, fold=one.fold, weights=one.weights)
        except PeftcError as refusal:  # what a format cannot hold is no file to compare
            print(one, refusal.diagnostics[0].message, flush=True)
            continue
        yield one, graphs[key], folder


def seen(graph: Any, folder: Path, *, deep: bool = False) -> tuple[bool, str, float, float]:
    """(whether the comparison fails, by what, the largest and the typical difference / noise)."""
    import peftc
    from peftc.ground.diagnostics import PeftcError

    try:
        report = peftc.verify(graph, folder, deep=deep)
        if report.ok and not deep:
            report = peftc.verify(graph, folder, deep=True)
    except PeftcError as refusal:
        return True, refusal.diagnostics[0].code, float("nan"), float("nan")
    outputs = max(r.difference / r.noise if r.noise else 0.0 for r in report.rows)
    found = {"weights": report.weights, "outputs": report.differing, "--deep": report.lines}
    by = [name for name, what in found.items() if what]
    return not report.ok, ", ".join(by), outputs, max(report.typical.values(), default=0.0)


def corrupted(words: list[str], home: Path, rows: list[dict[str, Any]]) -> None:
    """Plant what is not among the rows yet."""
    done = {(r["export"], r["corruption"]) for r in rows}
    wanted = [c for c in CORRUPTIONS if (str(c[0]), c[1]) not in done]
    wanted = [c for c in wanted if all(w in f"{c[0]} {c[1]}" for w in words)]
    order = list(dict.fromkeys(c[0] for c in wanted))
    for one, graph, folder in made(order, home):
        PACKAGED.update(dict(graph.named_parameters()))
        for name, change in [(n, c) for e, n, c in wanted if e == one]:
            copy = home / "corrupted"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            try:
                change(copy)
            except RuntimeError as cause:  # a mistake in the list above
                print(one, name, cause, flush=True)
                continue
            settle(copy)
            add(rows, one, name, *seen(graph, copy))


def untouched(words: list[str], home: Path, rows: list[dict[str, Any]]) -> None:
    """Compare the exports that are not among the rows yet."""
    done = {r["export"] for r in rows if not r["corruption"]}
    wanted = [e for e in dict.fromkeys(UNTOUCHED) if str(e) not in done]
    wanted = [e for e in wanted if all(w in str(e) for w in words)]
    wanted.sort(key=lambda e: (e.kind == "aoti", e.model, e.spec, e.dtype))
    for one, graph, folder in made(wanted, home / "untouched"):
        add(rows, one, "", *seen(graph, folder, deep=True))


def add(rows: list[dict[str, Any]], one: Export, name: str, *found: Any) -> None:
    """Keep a result, and write all that there are."""
    keys = ("seen", "by", "difference", "typical")
    rows.append({"export": str(one), "corruption": name, **dict(zip(keys, found, strict=True))})
    print(json.dumps(rows[-1]), flush=True)
    text = "".join(json.dumps(r) + "\n" for r in rows)
    RESULTS.write_text(text, encoding="utf-8")
    TABLE.write_text(document(rows), encoding="utf-8")


def document(rows: list[dict[str, Any]]) -> str:
    """Both tables."""
    planted = [r for r in rows if r["corruption"]]
    others = [r for r in rows if not r["corruption"]]
    text = [
        "# What `peftc verify` sees",
        "",
        f"{len(planted)} corruptions were planted in exported files, their hashes made to fit:",
        f"{sum(r['seen'] for r in planted)} were seen. {len(others)} exports that nobody touched",
        f"were compared in the same way: {sum(not r['seen'] for r in others)} pass. Models of two",
        f"layers with random weights; torch {torch.__version__}; written by",
        "`benchmarks/corruptions.py`. The last columns are the largest difference of an output",
        "and its root mean square, in units of what rounding alone does to the graph's own output",
        "on the same inputs; more than 8, or 4, fails. What is less than rounding is seen with",
        "`--deep` alone, with which the exports that nobody touched were compared too.",
        "",
        "| export | corruption | seen by | largest / noise | typical / noise |",
        "|---|---|---|---:|---:|",
        *(
            f"| {r['export']} | {r['corruption']} | {r['by'] if r['seen'] else '**not seen**'} "
            f"| {r['difference']:,.0f} | {r['typical']:,.0f} |"
            for r in planted
        ),
        "",
        "## Exports that nobody touched",
        "",
        "| export | | largest / noise | typical / noise |",
        "|---|---|---:|---:|",
        *(
            f"| {r['export']} | {'**fails: ' + r['by'] + '**' if r['seen'] else 'passes'} "
            f"| {r['difference']:.1f} | {r['typical']:.1f} |"
            for r in others
        ),
        "",
    ]
    return "\n".join(text)


def main() -> None:
    """Plant and compare what is missing."""
    words = sys.argv[1:]
    # Where a file differs is another question, and takes longer than whether it does.
    sys.modules["peftc.backends.verify"].first_difference = lambda *_: ""  # type: ignore[attr-defined]
    rows: list[dict[str, Any]] = []
    if RESULTS.is_file():
        rows = [json.loads(t) for t in RESULTS.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory(prefix="peftc-corruptions-") as home:
        HOME[0] = home
        if "untouched" not in words:
            corrupted(words, Path(home), rows)
        if not words or "untouched" in words:
            untouched([w for w in words if w != "untouched"], Path(home), rows)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests")]  # the zoo
    import peftc.backends.verify  # noqa: F401 (before `main` looks for it)

    main()
