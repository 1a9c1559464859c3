"""The README of an artifact: what it is and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftc.ground.markup import markdown
from peftc.spec import Spec


def card(lock: Mapping[str, Any], spec: Spec, *, data: str = "--data train.jsonl") -> str:
    """A model card in Markdown from the lock and the spec.

    `data` are the options that give it rows to train on; "" where rows of text cannot train it.
    """
    model, plan = lock["model"], lock["plan"]
    counts = plan["parameters"]
    rows = [
        f"| `{i['id']}` | {i['delta']} | {len(i['sites'])} | {i['parameters']:,} |"
        for i in plan["insertions"]
    ]
    rows += [
        f"| `tasks.{t['name']}` | {t['head']} | 1 | {t['parameters']:,} |"
        for t in plan.get("tasks", ())
    ]
    share = 100 * counts["trainable"] / (counts["base"] + counts["inserted"])
    return "\n".join(
        [
            f"# {markdown(spec.name)} on {markdown(model['reference'] or model['class'])}",
            "",
            markdown(spec.about),
            "",
            f"Trainable: {counts['trainable']:,} parameters ({share:.2f} % of the whole). "
            f"`peft.safetensors` holds these alone; the base is `{model['class']}`"
            + (f" at `{model['commit']}`" if model["commit"] else "")
            + ", checked weight by weight when this folder is loaded.",
            "",
            "| insertion | delta | sites | parameters |",
            "|---|---|---:|---:|",
            *rows,
            "",
            "## Use",
            "",
            "```python",
            "import peftc",
            "",
            'graph = peftc.load("this/folder")  # called like the model',
            "```",
            "",
            *(["    peftc train this/folder " + data] if data else []),
            "    peftc export this/folder --to onnx",
            "",
            "`spec.yaml` is the spec with every value resolved, `peftc.lock.json` names the model,",
            "the versions and every site, `graph.txt` is the rewritten graph,",
            "`graph.html` a picture of it.",
            "",
            "Made with "
            + ", ".join(f"{name} {version}" for name, version in lock["versions"].items())
            + ".",
            "",
        ]
    )
