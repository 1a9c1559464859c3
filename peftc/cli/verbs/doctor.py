"""`peftc doctor`: the machine and its packages, as a bug report needs them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

from peftc.cli.console import emit, say, table
from peftc.cli.options import Json

ORDER = 13
EXAMPLES = ("peftc doctor", "peftc doctor --offline --json > report.json")
TIMEOUT = 3.0  # seconds for the hub
EXTRAS = {"accelerate": "train", "onnx": "onnx", "onnxscript": "onnx", "onnx-ir": "onnx",
          "onnxruntime": "onnx"}  # fmt: skip


def doctor(json: Json = False) -> None:
    """Show versions, GPU, memory, disk and hub: what a bug report needs.

    Packages outside the versions that peftc was tested with are named; then the exit code is 7.
    """
    facts = {
        "packages": packages(),
        "problems": problems(),
        "machine": machine(),
        "gpu": gpu(),
        "disk": disk(),
        "hub": hub(),
    }
    if json:
        emit({"ok": not facts["problems"], **facts})
    else:
        show(facts)
    if facts["problems"]:
        raise typer.Exit(7)


def needed() -> dict[str, str]:
    """What peftc's own metadata asks for: package -> versions."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    for text in importlib.metadata.requires("peftc") or []:
        requirement = Requirement(text)
        if not requirement.extras and requirement.name != "peftc":
            found.setdefault(requirement.name, str(requirement.specifier))
    kept = {"torch", "transformers", "safetensors", "pydantic", "pyyaml", "rich", "typer", *EXTRAS}
    return {n: s for n, s in found.items() if n in kept}


def packages() -> list[dict[str, Any]]:
    """Each package with the version that is here and the versions asked for."""
    wanted = {"peftc": "", **needed(), "peft": "", "huggingface-hub": "", "numpy": ""}
    return [{"name": n, "version": version(n), "asked": s} for n, s in wanted.items()]


def version(name: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def problems() -> list[str]:
    """Packages that are missing, or of a version peftc does not go together with."""
    from packaging.specifiers import SpecifierSet

    found = []
    for name, asked in needed().items():
        here = version(name)
        if here is None:
            if name not in EXTRAS:
                found.append(f"{name} is not installed: pip install '{name}{asked}'")
        elif not SpecifierSet(asked).contains(here, prereleases=True):
            found.append(f"peftc {version('peftc')} and {name} {here} do not go together: "
                         f"it asks for {asked}")  # fmt: skip
    return found


def machine() -> dict[str, Any]:
    """System, Python, cores, memory."""
    from peftc.machine import free_memory

    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cores": os.cpu_count(),
        "free_memory": free_memory(),
    }


def gpu() -> dict[str, Any]:
    """What torch sees of a GPU."""
    if importlib.util.find_spec("torch") is None:
        return {"available": False, "devices": []}
    import torch

    devices = []
    for k in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(k)
        devices.append({"name": properties.name, "memory": properties.total_memory})
    return {
        "available": torch.cuda.is_available(),
        "cuda": torch.version.cuda,
        "devices": devices,
    }


def disk() -> list[dict[str, Any]]:
    """Free space where outputs, models and temporary files go."""
    from peftc.machine import free_disk, standing

    cache = Path(os.environ.get("HF_HOME", Path("~/.cache/huggingface").expanduser()))
    places = {"here": Path.cwd(), "models": cache, "temporary": Path(tempfile.gettempdir())}
    return [{"what": n, "path": str(standing(p)), "free": free_disk(p)} for n, p in places.items()]


def hub() -> dict[str, Any]:
    """Whether the hub answers, unless it is not to be asked."""
    import urllib.error
    import urllib.request

    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return {"url": place, "answers": None, "why": "not asked: offline"}
    start = time.perf_counter()
    try:
        request = urllib.request.Request(place, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            pass
    except urllib.error.HTTPError:
        pass  # it answered, if only to refuse
    except (OSError, ValueError) as cause:
        return {"url": place, "answers": False, "why": str(getattr(cause, "reason", cause))}
    return {"url": place, "answers": True, "seconds": round(time.perf_counter() - start, 2)}


def show(facts: dict[str, Any]) -> None:
    """The report as text."""
    from peftc.machine import size

    table(
        "",
        [("PACKAGE", ""), ("VERSION", ""), ("ASKED FOR", "")],
        [(p["name"], p["version"] or "not installed", p["asked"]) for p in facts["packages"]],
    )
    say()
    m, found = facts["machine"], facts["gpu"]
    memory = f", {size(m['free_memory'])} free memory" if m["free_memory"] is not None else ""
    say(f"system  {m['system']}, {m['cores']} cores{memory}")
    say(f"python  {m['python']}  {m['executable']}")
    names = ", ".join(f"{d['name']} ({size(d['memory'])})" for d in found["devices"])
    say(f"gpu     {names or 'none'}")
    for d in facts["disk"]:
        say(f"disk    {size(d['free'])} free for {d['what']}  {d['path']}")
    h = facts["hub"]
    answer = {True: f"answers in {h.get('seconds')} s", None: h.get("why")}.get(h["answers"])
    say(f"hub     {h['url']}  {answer or 'does not answer: ' + h['why']}")
    say()
    for problem in facts["problems"]:
        say(f"problem: {problem}", "bold red")
    if not facts["problems"]:
        say("no known-bad pair of packages")
