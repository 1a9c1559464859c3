"""The nn.Modules that are inserted: one a file, named as the delta they are the math of.

A piece knows tensors and shapes, not graphs. `piece_class(kind)` finds the piece of a delta in
the module of the same name, so a new piece is one file here beside its options in `peftc.spec`.
"""

from __future__ import annotations

import importlib
import pkgutil

from peftc.pieces.base import Piece

__all__ = ["Piece", "piece_class"]


def piece_class(kind: str) -> type[Piece]:
    """The piece of the delta called `kind`: the only public subclass in `peftc.pieces.<kind>`.

    Raises:
        LookupError: for a delta without a piece, which is a fault of this package.
    """
    if kind not in {m.name for m in pkgutil.iter_modules(__path__)}:
        raise LookupError(f"peftc.pieces has no module `{kind}`")
    module = importlib.import_module(f"{__name__}.{kind}")
    return next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Piece) and vars(c).get("kind") == kind
    )
