"""Exporters, one a file, each with a way to run what it exported."""

from peftc.backends.base import Backend, Exported, backend, backends
from peftc.backends.export import export
from peftc.backends.report import Report
from peftc.backends.verify import verify

__all__ = ["Backend", "Exported", "Report", "backend", "backends", "export", "verify"]
