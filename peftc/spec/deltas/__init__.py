"""The deltas a spec can name: one file each, found by walking this package."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from peftc.spec.deltas.base import DeltaOptions


@functools.cache
def all_deltas() -> dict[str, type[DeltaOptions]]:
    """Every delta's options by kind, in alphabetical order."""
    found: dict[str, type[DeltaOptions]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, DeltaOptions)
                and value.__module__ == module.__name__
                and value is not DeltaOptions
            ):
                found[value.kind] = value
    return found
