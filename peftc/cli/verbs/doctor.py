"""`peftc doctor`: the machine and its packages, as a bug report needs them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from peftc.cli.console import emit, progress, say, table
from peftc.cli.options import Json

ORDER = 13
EXAMPLES = ("peftc doctor", "peftc doctor --offline --json > report.json")
TIMEOUT = 3.0  # seconds for the hub
EXTRAS = ("", "onnx", "train", "peft")  # what peftc runs with; the rest is for its developers
ALSO = ("numpy", "huggingface-hub", "tokenizers")


def doctor(json: Json = False) -> None:
    """Show versions, GPU, memory, disk and hub: what a bug report needs.

    The exit code is 7 where a package is missing or of a version that does not fit.
    """
    with progress("looking"):
        facts = {
            "packages": packages(),
            "machine": machine(),
            "gpu": gpu(),
            "disk": disk(),
            "hub": hub(),
        }
    problems = list(wrong(facts))
    if json:
        emit({"ok": not problems, **facts, "problems": problems})
    else:
        show(facts, problems)
    if problems:
        raise typer.Exit(7)


def packages() -> list[dict[str, Any]]:
    """What peftc asks for: each package, its version here, the versions it may have, what for."""
    from packaging.requirements import Requirement

    rows = [{"name": "peftc", "version": version("peftc"), "asked": "", "extra": "", "fits": True}]
    # Run from a source tree that is not installed, nothing says what it asks for.
    asked = importlib.metadata.requires("peftc") if rows[0]["version"] else None
    for r in map(Requirement, asked or ()):
        extra = next(
            (e for e in EXTRAS if r.marker is None or r.marker.evaluate({"extra": e})), None
        )
        if extra is None or r.name == "peftc":
            continue
        here = version(r.name)
        rows.append(
            {
                "name": r.name,
                "version": here,
                "asked": str(r.specifier),
                "extra": extra,
                "fits": here is not None and r.specifier.contains(here, prereleases=True),
            }
        )
    known = {r["name"] for r in rows}
    others = [(n, version(n)) for n in ALSO if n not in known]
    return rows + [
        {"name": n, "version": v, "asked": "", "extra": "", "fits": True} for n, v in others
    ]


def version(name: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """System, Python, cores, memory."""
    from peftc.ground.machine import free_memory

    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cores": os.cpu_count(),
        "free_memory": free_memory(),
    }


def gpu() -> dict[str, Any]:
    """What torch sees of a GPU, or why it sees nothing."""
    try:
        import torch
    except (ImportError, OSError) as cause:  # OSError: a library of CUDA that is not there
        return {"devices": [], "cuda": None, "problem": f"torch cannot be imported: {cause}"}
    devices = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return {
        "devices": [{"name": d.name, "memory": d.total_memory} for d in devices],
        "cuda": torch.version.cuda,
        "problem": None,
    }


def disk() -> list[dict[str, Any]]:
    """Free space where outputs, models and temporary files go."""
    from peftc.ground.machine import free_disk, standing

    home = os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
    places = {"outputs here": ".", "models": home, "temporary files": tempfile.gettempdir()}
    return [
        {"what": what, "path": str(standing(Path(p))), "free": free_disk(Path(p))}
        for what, p in places.items()
    ]


def hub() -> dict[str, Any]:
    """Whether the hub answers, unless it is not to be asked."""
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return {"url": place, "answers": None, "said": "not asked: offline"}
    start = time.perf_counter()
    try:
        request = urllib.request.Request(place, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            pass
    except urllib.error.HTTPError:
        pass  # it answered, if only to refuse
    except (OSError, ValueError) as cause:
        why = str(getattr(cause, "reason", cause))
        return {"url": place, "answers": False, "said": f"does not answer: {why}"}
    return {
        "url": place,
        "answers": True,
        "said": f"answers in {time.perf_counter() - start:.1f} s",
    }


def wrong(facts: dict[str, Any]) -> Iterator[str]:
    """What keeps peftc from running, each with what mends it."""
    for p in facts["packages"]:
        need = f"{p['name']}{p['asked']}"
        if p["version"] is None:
            if not p["extra"] and p["asked"]:
                yield f"{p['name']} is not installed: pip install '{need}'"
        elif not p["fits"]:
            yield (
                f"{p['name']} {p['version']} does not go together with this peftc: "
                f"pip install '{need}'"
            )
    if facts["gpu"]["problem"]:
        yield facts["gpu"]["problem"]


def show(facts: dict[str, Any], problems: list[str]) -> None:
    """The report as text."""
    from peftc.ground.machine import size

    table(
        "",
        [("PACKAGE", ""), ("VERSION", ""), ("PEFTC ASKS FOR", ""), ("EXTRA", "")],
        [
            (p["name"], p["version"] or "not installed", p["asked"] or "-", p["extra"] or "-")
            for p in facts["packages"]
        ],
    )
    say()
    m, found = facts["machine"], facts["gpu"]
    memory = f", {size(m['free_memory'])} of memory free" if m["free_memory"] is not None else ""
    say(f"system  {m['system']}, {m['cores']} cores{memory}")
    say(f"python  {m['python']}  {m['executable']}")
    names = [f"{d['name']} ({size(d['memory'])})" for d in found["devices"]]
    built = f"CUDA {found['cuda']}" if found["cuda"] else "a torch without CUDA"
    say(f"gpu     {', '.join(names) or 'none'}  ({built})")
    for d in facts["disk"]:
        say(f"disk    {size(d['free'])} free for {d['what']}: {d['path']}")
    say(f"hub     {facts['hub']['url']} {facts['hub']['said']}")
    say()
    for problem in problems:
        say(f"problem: {problem}", "bold red")
    if not problems:
        say("all packages go together")
