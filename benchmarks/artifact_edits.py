"""Random edits of values in artifacts' files: each is refused, or loads as the same function.

    python benchmarks/artifact_edits.py [--edits 1000] [--seed 0]     # ends with 1 at a fault

Two kinds of editor. One changes a value: in the spec, the lock, the header of the tensors, or a
byte of their numbers. The other changes a value of the spec and makes the lock agree, so that what
refuses it has to be the graph itself. A fault is an edit that loads as another function (outputs
differ in a bit, with dropouts on and off), or one that ends in anything but a refusal with a code.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import peftc
from peftc.artifact.lock import LOCK, SPEC, TENSORS
from peftc.capture import Program, capture
from peftc.ground.diagnostics import PeftcError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from sealing import reseal

STEPS = [{"linear": {"out": 5}}, {"act": "gelu"}, {"scale": 0.7}, {"linear": {"out": "same"}}]
DORA = {"dora": {"rank": 3, "scale": 1.7, "dropout": 0.1}}
BOTTLENECK = {"dim": 6, "act": "silu", "init": "houlsby", "dropout": 0.1, "norm": "before"}
PREFIX = {"tokens": 3, "reparam": {"hidden": 7, "act": "tanh"}}
PROMPT = {"tokens": 2, "reparam": {"hidden": 9, "act": "tanh"}}
GATED = {"add": {"scale": 1.5, "gate": {"reads": "x"}}}
INSERT = [
    {"id": "lows", "at": ["attn.v"], "delta": {"low_rank": {"rank": 4, "dropout": 0.1}},
     "compose": {"add": {"scale": 2.0}}},
    {"id": "dora", "at": "attn.q", "layers": "last 1", "delta": DORA},
    {"id": "small", "at": "ffn.out", "delta": {"bottleneck": BOTTLENECK}, "compose": GATED},
    {"id": "pipe", "at": "attn.out", "delta": {"pipe": STEPS}},
    {"id": "l", "at": "ffn.act", "delta": {"vector": {}}, "compose": "multiply"},
    {"id": "pre", "at": "attn.kv", "delta": {"prefix": PREFIX}},
    {"id": "soft", "at": "embed.out", "delta": {"prompt": PROMPT}},
]  # fmt: skip
TASKS = {
    "topic": {"head": {"sequence_classification": {"labels": ["a", "b", "c"]}}},
    "ner": {"head": {"token_classification": {"labels": 4}}},
}
SPECS: dict[str, dict[str, Any]] = {
    "one": {"insert": INSERT, "unfreeze": [{"role": "head"}, {"role": "norm", "optional": True}],
            "export": {"fold": ["lows"]}},
    "many": {"tasks": TASKS, "insert": [
        {**INSERT[0], "share": "per_task"}, {**INSERT[2], "compose": "add", "share": "per_task"}]},
}  # fmt: skip
# Words that stand in a spec, each a choice in place of some other.
WORDS = (
    "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu", "identity", "before",
    "after", "none", "layer", "rms", "kaiming", "gaussian", "zero_up", "lora", "normal", "zeros",
    "sequential", "parallel", "x", "h", "stream", "all", "last 1", "first 2", "odd", "keep",
    "start", "after_first", "attn.k", "attn.q", "attn.v", "ffn.up", "ffn.out", "attn.out", "auto",
)  # fmt: skip


def models() -> dict[str, Any]:
    """A tiny encoder and a tiny decoder, with weights that its outputs react to."""
    torch.manual_seed(0)
    encoder = BertForSequenceClassification(BertConfig(
        vocab_size=99, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=64, num_labels=3,
    ))  # fmt: skip
    decoder = LlamaForSequenceClassification(LlamaConfig(
        vocab_size=95, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, intermediate_size=36, max_position_embeddings=64,
        num_labels=3, pad_token_id=0,
    ))  # fmt: skip
    for model in (encoder, decoder):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    return {"bert one": encoder.eval(), "bert many": encoder.bert, "llama one": decoder.eval()}


def artifacts(home: Path, names: Sequence[str] = ()) -> Iterator[tuple[str, Path, Program]]:
    """Folders of artifacts with trained-looking tensors, each with the capture of its base."""
    for name, model in models().items():
        if names and name not in names:
            continue
        base, parts = capture(model), copy.deepcopy(SPECS[name.split()[1]])
        graph = peftc.apply({"peftc": 1, "name": name, **parts}, base)
        generator = torch.Generator().manual_seed(1)
        for parameter in peftc.trainable(graph).values():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
        yield name, peftc.save(graph, home / name), base


def outputs(graph: Program) -> list[torch.Tensor]:
    """What a graph gives at two shapes, without dropouts and with them."""
    found = []
    for shape in ((3, 7), (2, 11)):
        generator = torch.Generator().manual_seed(2)
        given = []
        for i in graph.signature.inputs:
            size = [d if isinstance(d, int) else shape[k] for k, d in enumerate(i.dims)]
            below = i.below or (2 if "mask" in i.name or "type" in i.name else 95)
            value = torch.randint(0, below, size, generator=generator, dtype=i.dtype)
            if "mask" in i.name:
                value[:, :-2] = 1
            given.append(value)
        for training in (False, True):
            torch.manual_seed(3)
            graph.train(training)
            with torch.no_grad():
                found += [v.clone() for v in graph.flat(*given)]
    graph.eval()
    return found


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values of a document that are no mappings or lists."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return [p for k, v in items for p in places(v, (*path, k))]
    return [path]


def other(value: Any, chance: random.Random) -> Any:
    """Another value in place of one: mostly of its own kind, at times of none."""
    if chance.random() < 0.1:
        return chance.choice([None, [], {}, "", -1, 0, True, 1e308, "\ud800", 10**30])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([value + 1, value - 1, value * 2, -value, 0, 1])
    if isinstance(value, float):
        return chance.choice([value * 2, value / 3, -value, 0.0, 1.0, value + 1e-6])
    if isinstance(value, str) and len(value) == 64:
        at = chance.randrange(64)
        return value[:at] + chance.choice("0123456789abcdef") + value[at + 1 :]
    return chance.choice([*WORDS, f"{value}x", str(value)[:-1]])


def change(data: Any, chance: random.Random) -> str:
    """Change one value of a document in place; where, and to what."""
    *path, last = chance.choice(places(data))
    part = data
    for key in path:
        part = part[key]
    before = part[last]
    while repr(part[last]) == repr(before):
        part[last] = other(before, chance)
    return f"{'.'.join(map(str, (*path, last)))}: {before!r} -> {part[last]!r}"


def edit_spec(folder: Path, chance: random.Random) -> str:
    """A value of the spec."""
    data = yaml.safe_load((folder / SPEC).read_text(encoding="utf-8"))
    said = change(data, chance)
    text = yaml.safe_dump(data, sort_keys=False)
    (folder / SPEC).write_text(text, encoding="utf-8", errors="replace")
    return said


def edit_lock(folder: Path, chance: random.Random) -> str:
    """A value of the lock."""
    data = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    said = change(data, chance)
    (folder / LOCK).write_text(json.dumps(data, indent=1), encoding="utf-8")
    return said


def edit_header(folder: Path, chance: random.Random) -> str:
    """A value of the header of the tensors."""
    data = (folder / TENSORS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    said = change(header, chance)
    text = json.dumps(header).encode()
    (folder / TENSORS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return said


def edit_numbers(folder: Path, chance: random.Random) -> str:
    """One bit of the tensors."""
    data = bytearray((folder / TENSORS).read_bytes())
    at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
    data[at] ^= bit
    (folder / TENSORS).write_bytes(data)
    return f"byte {at}, bit {bit}"


def forge_spec(folder: Path, chance: random.Random) -> str:
    """A value of the spec, and the lock made to agree."""
    said = edit_spec(folder, chance)
    reseal(folder)
    return said


def forge_tensors(folder: Path, chance: random.Random) -> str:
    """The header of the tensors, and the lock's hashes made to agree."""
    said = edit_header(folder, chance)
    reseal(folder)
    return said


EDITS: dict[str, tuple[Callable[[Path, random.Random], str], int]] = {
    "spec": (edit_spec, 4),
    "lock": (edit_lock, 4),
    "header": (edit_header, 2),
    "numbers": (edit_numbers, 2),
    "spec, lock agrees": (forge_spec, 4),
    "header, lock agrees": (forge_tensors, 1),
}


def tried(folder: Path, base: Program, wanted: list[torch.Tensor]) -> str:
    """How an edited artifact loads: a code, "same", or what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = peftc.load(folder, base)
    except PeftcError as refusal:
        return refusal.diagnostics[0].code
    except Exception as fault:
        return f"FAULT {type(fault).__name__}: {fault}"[:200]
    found = outputs(graph)
    same = len(found) == len(wanted) and all(map(torch.equal, found, wanted))
    return "same" if same else "FAULT another function"


def run(
    edits: int, seed: int, only: Sequence[str] = tuple(EDITS), names: Sequence[str] = ()
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Edit so many values; (editor, what came of it) -> how often, and the faults in words."""
    found: Counter[tuple[str, str]] = Counter()
    chance, faults = random.Random(seed), []
    with tempfile.TemporaryDirectory() as home:
        made = list(artifacts(Path(home), names))
        originals = {f: {p.name: p.read_bytes() for p in f.iterdir()} for _, f, _ in made}
        wanted = {f: outputs(peftc.load(f, base)) for _, f, base in made}
        for _ in range(edits):
            name, folder, base = chance.choice(made)
            kind = chance.choices(only, [EDITS[k][1] for k in only])[0]
            said = EDITS[kind][0](folder, chance)
            result = tried(folder, base, wanted[folder])
            found[kind, result.partition(":")[0]] += 1
            if result.startswith("FAULT"):
                faults.append(f"{name}, {kind}: {said}: {result}")
            for file, data in originals[folder].items():
                (folder / file).write_bytes(data)
    return found, faults


def main() -> None:
    """Edit, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found, faults = run(given.edits, given.seed)
    for (kind, result), count in sorted(found.items()):
        print(f"{kind:20} {result:24} {count:5}")
    print(f"{given.edits} edits, {len(faults)} faults")
    print("\n".join(faults))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
