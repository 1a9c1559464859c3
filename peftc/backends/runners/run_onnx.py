"""python run_onnx.py MODEL INPUTS.npz OUTPUTS.npz: run an ONNX file with ONNX Runtime alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(model: str, inputs: str, outputs: str) -> None:
    """Run the model on each numbered set of inputs: keys are `<set>/<name>`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    facts = json.loads(Path(model).with_name("peftc.export.json").read_text(encoding="utf-8"))
    for key, value in facts["session"].items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    given: dict[str, dict[str, np.ndarray]] = {}
    with np.load(inputs) as file:
        for key in file.files:
            group, name = key.split("/", 1)
            if name in taken:
                given.setdefault(group, {})[name] = file[key]
    results = {}
    for group, feed in given.items():
        for name, value in zip(names, session.run(names, feed), strict=True):
            results[f"{group}/{name}"] = value
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:4])
