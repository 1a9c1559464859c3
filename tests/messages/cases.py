"""Real mistakes, one or more for each code: what is done wrong, and a place to do it in.

A case is a function in one of the files beside this one, e0.py for E0xx and so on:

    @case("E002", "a key given twice")
    def _(here):
        here.check("peftc: 1\\nname: n\\nname: m\\n")

It makes peftc refuse (or returns a plan that has warnings). What peftc then says is kept in
CODE.txt; `PEFTC_MESSAGES=write pytest tests/messages` writes these files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zoo

import peftc
from peftc.ground.diagnostics import Diagnostic, PeftcError

CASES: dict[str, list[tuple[str, Callable[[Here], Any]]]] = {}
ONE = "peftc: 1\nname: n\ninsert:\n  - id: a\n    at: ffn.out\n    delta: {bottleneck: {dim: 8}}\n"


def case(code: str, title: str) -> Callable[[Callable[[Here], Any]], None]:
    """Note a mistake that must be answered with `code`."""

    def note(mistake: Callable[[Here], Any]) -> None:
        CASES.setdefault(code, []).append((title, mistake))

    return note


@dataclass
class Here:
    """An empty working folder, a tiny BERT classifier in ./model, and its capture."""

    folder: Path
    monkeypatch: Any
    family: tuple[str, str] = ("bert", "sequence-classification")

    @property
    def program(self) -> Any:
        """The captured model."""
        return zoo.captured(*self.family)

    def write(self, text: str | bytes, name: str = "mine.yaml") -> Path:
        """A file of the working folder."""
        data = text.encode() if isinstance(text, str) else text
        Path(name).write_bytes(data)
        return Path(name)

    def check(self, text: str | bytes, **set: object) -> Any:
        """Load a spec."""
        return peftc.load_spec(self.write(text), set=set)

    def plan(self, text: str, family: tuple[str, str] | None = None) -> Any:
        """Plan a spec on a captured model."""
        return peftc.plan(self.write(text), zoo.captured(*(family or self.family)))

    def insert(self, entry: str, family: tuple[str, str] | None = None, rest: str = "") -> Any:
        """Plan a spec of one insertion, written as a flow of keys a line."""
        lines = "".join(f"    {line}\n" for line in entry.splitlines())
        return self.plan(f"peftc: 1\nname: n\ninsert:\n  - id: a\n{lines}{rest}", family)

    def run(self, *argv: str) -> None:
        """Run a command, its refusal raised rather than printed, equal models captured once."""
        from peftc.cli.main import build, refused

        self.monkeypatch.setattr("peftc.rewrite.apply.capture", zoo.captured_once)
        try:
            build()(args=list(argv), standalone_mode=False, prog_name="peftc")
        except Exception as wrong:
            raise refused(wrong) or wrong from wrong

    def artifact(self, spec: Any = "lora", reference: str | None = "model") -> Path:
        """./out, made from a spec and the tiny model."""
        from peftc.rewrite.applied import APPLIED

        graph = peftc.apply(spec, self.program)
        graph.meta[APPLIED].reference = reference
        return peftc.save(graph, Path("out"))

    def without_tokenizer(self) -> None:
        """./bare, the model without its tokenizer."""
        Path("bare").mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(Path("model", name), Path("bare", name))


def said(code: str, mistake: Callable[[Here], Any], here: Here) -> list[Diagnostic]:
    """The diagnostics that a mistake is answered with, `code` among them."""
    try:
        found = list(getattr(mistake(here), "notes", ()))
    except PeftcError as refusal:
        found = refusal.diagnostics
    if code not in {d.code for d in found}:
        text = "\n\n".join(d.render() for d in found) or "nothing"
        raise AssertionError(f"wanted {code}, but peftc says:\n{text}")
    return found
