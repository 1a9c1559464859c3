"""Checkpoints of other libraries in and out, one file a direction and method."""

from peftc.interop.importing import import_checkpoint

__all__ = ["import_checkpoint"]
