"""The deltas a spec can name: the options of every method, found by walking `methods`."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from peftc.spec.delta import DeltaOptions


@functools.cache
def all_deltas() -> dict[str, type[DeltaOptions]]:
    """Every delta's options by kind, in alphabetical order."""
    found: dict[str, type[DeltaOptions]] = {}
    # Named, not imported: the language knows no method, each method knows the language.
    home = importlib.import_module("peftc.methods")
    for info in pkgutil.iter_modules(home.__path__):
        if not info.ispkg:
            continue
        module = importlib.import_module(f"{home.__name__}.{info.name}.options")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, DeltaOptions)
                and value.__module__ == module.__name__
                and value is not DeltaOptions
            ):
                found[value.kind] = value
    return found
