"""The installed wheel does the main job outside the source tree. A script, not a test module."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

import peftc

SOURCE = Path(__file__).parents[1]


def main() -> None:
    home = Path(peftc.__file__).resolve()
    if SOURCE in home.parents:
        raise SystemExit(f"peftc comes from the source tree: {home}")
    config = BertConfig(
        vocab_size=99,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
    )
    model = BertForSequenceClassification(config).eval()
    graph = peftc.apply("houlsby", model, set={"init": "zero_up"})
    ids = torch.arange(5, 15).reshape(2, 5)
    with torch.no_grad():
        difference = (graph(input_ids=ids).logits - model(input_ids=ids).logits).abs().max().item()
    if difference != 0.0:
        raise SystemExit(f"apply changed the outputs by {difference}")
    with tempfile.TemporaryDirectory() as folder:
        peftc.save(graph, f"{folder}/out")
        again = peftc.load(f"{folder}/out", model)
        peftc.export(again, "onnx", f"{folder}/onnx")
        report = peftc.verify(again, f"{folder}/onnx")
    if not report.ok:
        raise SystemExit(f"the exported file differs: {report}")
    from peftc.cli.main import run
    from peftc.spec.json_schema import schema_path

    if run(["explain", "E101"]) != 0 or not schema_path().is_file():
        raise SystemExit("the wheel lacks its explanations or its schema")
    print(f"wheel works: {home}")  # noqa: T201


if __name__ == "__main__":
    main()
