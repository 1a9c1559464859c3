"""The shipped specs: files in the same language, nothing about them is privileged."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def folder() -> Path:
    """Where the shipped specs are."""
    return Path(str(files("peftc.specs")))


def names() -> list[str]:
    """The names of the shipped specs, in alphabetical order."""
    return sorted(p.stem for p in folder().glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file of a shipped spec."""
    return folder() / f"{name}.yaml"
