"""peftc: a compiler for model surgery.

    graph = peftc.apply("houlsby", model)    # a torch.fx.GraphModule, called like the model
    peftc.save(graph, "out"); graph = peftc.load("out")
    peftc.export(graph, "onnx", "out/onnx"); peftc.verify(graph, "out/onnx")

Nothing heavy is imported until one of these names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftc.api import apply, plan, sites
    from peftc.artifact.folder import load, save
    from peftc.backends import export, verify
    from peftc.ground.diagnostics import PeftcError
    from peftc.interop import import_checkpoint
    from peftc.rewrite.applied import trainable
    from peftc.rewrite.apply import select_task
    from peftc.rewrite.without import without
    from peftc.spec import load_spec

__version__ = "0.1.0"

_HOMES = {
    "apply": "peftc.api",
    "plan": "peftc.api",
    "select_task": "peftc.rewrite.apply",
    "sites": "peftc.api",
    "trainable": "peftc.rewrite.applied",
    "load": "peftc.artifact.folder",
    "save": "peftc.artifact.folder",
    "export": "peftc.backends",
    "verify": "peftc.backends",
    "load_spec": "peftc.spec",
    "without": "peftc.rewrite.without",
    "PeftcError": "peftc.ground.diagnostics",
    "import_checkpoint": "peftc.interop",
}
__all__ = [
    "PeftcError",
    "apply",
    "export",
    "import_checkpoint",
    "load",
    "load_spec",
    "plan",
    "save",
    "select_task",
    "sites",
    "trainable",
    "verify",
    "without",
]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
