"""Writes specs/bert_base.json: what every shipped spec trains on BERT-base, for `peftc specs ls`.

python benchmarks/spec_counts.py
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from transformers import BertConfig

import peftc
from peftc.dataflow.site import Sites
from peftc.ground.diagnostics import PeftcError
from peftc.planning.make import make_plan
from peftc.spec.catalogue import names

HOME = Path(__file__).parent.parent / "specs"


def counts(sites: Sites) -> dict[str, int]:
    """Parameters that every spec trains which fits a model, the model's own among them."""
    found = {}
    for name in names():
        with suppress(PeftcError):  # a spec for models with two stacks
            found[name] = make_plan(peftc.load_spec(name), sites).trainable
    return found


if __name__ == "__main__":
    (HOME / "bert_base.json").write_text(
        json.dumps(counts(peftc.sites(BertConfig())), indent=1) + "\n", encoding="utf-8"
    )
