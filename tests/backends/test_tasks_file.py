"""A file of many tasks, run with mixed rows where there is no peftc, against one task at a time."""

from __future__ import annotations

import subprocess
import sys

import linking
import numpy as np
import pytest
import reference
import torch
import zoo
from tolerances import EXPORT

import peftc

HEADS = {
    "ner": {"token_classification": {"labels": 7}},
    "topic": {"sequence_classification": {"labels": 3}},
    "qa": "question_answering",
}
SIZES = {"ner": (2, 3), "topic": (6, 3), "qa": (4, 5)}  # prefix tokens, rank
SHAPES = [(5, 9), (4, 6)]
SCRIPT = """
import sys
import numpy as np
import onnxruntime

model, given, made = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
names = [o.name for o in session.get_outputs()]
taken = {i.name for i in session.get_inputs()}
feeds = {}
for key, value in np.load(given).items():
    batch, name = key.split("/")
    feeds.setdefault(batch, {})[name] = value
found = {}
for batch, feed in feeds.items():
    values = session.run(names, {n: v for n, v in feed.items() if n in taken})
    found |= {f"{batch}/{n}": v for n, v in zip(names, values)}
np.savez(made, **found)
assert not {"peftc", "torch", "transformers"} & set(sys.modules)
"""


def spec(tasks, share=None):
    """Prefixes and low-rank updates of each task's own sizes, a bottleneck for all, and heads.

    Of one task the sizes are written out; of several its variables have them.
    """
    tokens, rank = ("$t", "$r") if share else SIZES[tasks[0]]
    own = {"share": share} if share else {}
    sets = {n: {"set": dict(zip("tr", SIZES[n], strict=True))} if share else {} for n in tasks}
    return {
        "peftc": 1,
        "name": "s",
        "vars": {"t": 1, "r": 1} if share else {},
        "tasks": {n: {"head": HEADS[n], **sets[n]} for n in tasks},
        "insert": [
            {"id": "p", "at": "attn.kv", "delta": {"prefix": {"tokens": tokens}}, **own},
            {"id": "l", "at": "attn.q", "delta": {"low_rank": {"rank": rank}}, **own},
            {"id": "b", "at": "ffn.out", "delta": {"bottleneck": {"dim": 4}}},
        ],
    }


def alone(graph, kind, task):
    """A graph made of one task's spec, with the tensors that this task has in `graph`."""
    made = peftc.apply(spec([task]), linking.captured(kind, "base"))
    given = {n.replace(f".{task}.", ".") if "peft.tasks" not in n else n: p
             for n, p in graph.peft_parameters()}  # fmt: skip
    for name, parameter in made.peft_parameters():
        parameter.data.copy_(given[name])
    return made


def run(model, inputs, folder):
    """What a file gives for every batch, from a process with numpy and ONNX Runtime alone."""
    given, made = folder / "given.npz", folder / "made.npz"
    np.savez(given, **{f"{k}/{n}": v for k, feed in enumerate(inputs) for n, v in feed.items()})
    subprocess.run([sys.executable, "-I", "-c", SCRIPT, model, given, made], check=True)
    found: list[dict[str, torch.Tensor]] = [{} for _ in inputs]
    for key, value in np.load(made).items():
        k, name = key.split("/")
        found[int(k)][name] = torch.from_numpy(value)
    return found


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_row_of_a_mixed_batch_is_as_in_a_file_or_graph_of_its_task(kind, tmp_path):
    graph = peftc.apply(spec(list(HEADS), "per_task"), linking.captured(kind, "base"))
    reference.randomise(graph)
    peftc.export(graph, "onnx", tmp_path / "all")
    batches = [zoo.inputs(linking.model(kind, "base"), *shape) for shape in SHAPES]
    for batch in batches:
        batch["task_ids"] = (2 * torch.arange(len(batch["input_ids"]))) % 3
        assert (batch["attention_mask"] == 0).any()
    mixed = run(tmp_path / "all" / "model.onnx", batches, tmp_path)
    of_qa: list[dict[str, torch.Tensor]] = [{} for _ in batches]
    if kind == "bert":
        peftc.export(graph, "onnx", tmp_path / "qa", task="qa")
        of_qa = run(tmp_path / "qa" / "model.onnx", batches, tmp_path)
    for k, task in enumerate(HEADS):
        one = alone(graph, kind, task)
        for batch, got, file in zip(batches, mixed, of_qa, strict=True):
            inputs = {n: v for n, v in batch.items() if n != "task_ids"}
            rows, mask = batch["task_ids"] == k, batch["attention_mask"]
            with torch.no_grad():
                wanted = one(**inputs)
            for name, value in wanted.items():
                pairs = [(got[f"{name}_{task}"], value)]
                if task == "qa" and file:
                    pairs.append((got[f"{name}_qa"], file[name]))
                for ours, theirs in pairs:
                    if task != "topic":
                        ours, theirs = (zoo.real_rows(t, mask) for t in (ours, theirs))
                    torch.testing.assert_close(ours[rows], theirs[rows], **EXPORT[torch.float32])
                others = got[f"{name}_{task}"][~rows] - value[~rows]
                assert others.abs().max() > 1e-2  # rows of other tasks have other pieces
