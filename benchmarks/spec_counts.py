"""Writes specs/bert_base.json: what every shipped spec inserts on BERT-base, for `peftc specs ls`.

python benchmarks/spec_counts.py
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import BertConfig

import peftc
from peftc.planner import make_plan
from peftc.spec.catalogue import names

HOME = Path(__file__).parent.parent / "specs"


def counts() -> dict[str, int]:
    """Inserted parameters by spec, from plans on meta tensors."""
    sites = peftc.sites(BertConfig())
    return {n: make_plan(peftc.load_spec(n), sites).inserted for n in names()}


if __name__ == "__main__":
    (HOME / "bert_base.json").write_text(json.dumps(counts(), indent=1) + "\n", encoding="utf-8")
