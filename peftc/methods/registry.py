"""The modules that are inserted, by the kind of the delta that they are the math of.

A piece knows tensors and shapes, not graphs. `piece_class(kind)` finds it in the room of its
method, `peftc.methods.<kind>.module`.
"""

from __future__ import annotations

import importlib
import pkgutil

from peftc import methods
from peftc.pieces.base import Piece

__all__ = ["Piece", "piece_class"]


def piece_class(kind: str) -> type[Piece]:
    """The piece of the delta called `kind`: the class of that kind in its method's room.

    Raises:
        LookupError: for a delta without a piece, which is a fault of this package.
    """
    if kind not in {m.name for m in pkgutil.iter_modules(methods.__path__)}:
        raise LookupError(f"peftc.methods has no room `{kind}`")
    module = importlib.import_module(f"{methods.__name__}.{kind}.module")
    return next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Piece) and vars(c).get("kind") == kind
    )
