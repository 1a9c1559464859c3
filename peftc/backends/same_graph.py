"""The operations and constants of an exported file against the graph, converted anew."""

from __future__ import annotations

import difflib
import importlib.metadata

from peftc.backends.base import Exported, backend
from peftc.backends.export import refolded
from peftc.capture.program import Program

LONGEST = 160  # characters of a line that are shown


def differing_lines(graph: Program, exported: Exported) -> tuple[str, ...] | None:
    """Lines of the file and of the graph that are not in both, as a diff; none is the same graph.

    None where there is nothing to compare: formats without a text, and files of other versions
    of peftc or torch, which may write the same graph in other words.
    """
    versions = exported.facts["versions"]
    if any(importlib.metadata.version(p) != v for p, v in versions.items()):
        return None
    target = backend(exported.kind)
    program = refolded(graph, exported, deferred=target.streams)
    ours, theirs = target.listings(program, exported)
    if not ours:
        return None
    found = difflib.unified_diff(ours, theirs, "graph", "file", lineterm="", n=0)
    return tuple(line[:LONGEST] for line in found if line[:3] not in ("---", "+++", "@@ "))
