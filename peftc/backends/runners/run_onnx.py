"""Runs an ONNX file, with ONNX Runtime alone."""

import json
from pathlib import Path

import onnxruntime


def opened(model, threads=0):
    """What binds a set of inputs to the model, as a call that gives outputs by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    facts = json.loads(Path(model).with_name("peftc.export.json").read_text(encoding="utf-8"))
    for key, value in facts["session"].items():
        options.add_session_config_entry(key, value)
    providers: list = ["CPUExecutionProvider"]
    cuda = "CUDAExecutionProvider"
    if facts.get("device", "cpu") == "cuda" and cuda in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # CUDA's libraries may lie in Python packages
        providers.insert(0, (cuda, {"use_tf32": "0"}))  # products in float32, as on a CPU
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    taken = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]

    def bound(inputs):
        feed = {n: v for n, v in inputs.items() if n in taken}
        return lambda: dict(zip(names, session.run(names, feed), strict=True))

    return bound
