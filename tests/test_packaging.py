"""The declared packages are the folders on disk, and what they need travels with them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOMES = {"peftc": "peftc", "passes": "peftc.passes", "specs": "peftc.specs"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> set[str]:
    found = set()
    for top, package in HOMES.items():
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / top).parts
            if not (top == "peftc" and parts[:1] in (("passes",), ("specs",))):
                found.add(".".join([package, *parts]))
    return found


def test_every_package_folder_is_declared() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders()


def test_every_shipped_spec_is_package_data() -> None:
    packaged = {p.name for p in files("peftc.specs").iterdir() if p.name.endswith(".yaml")}
    assert packaged == {p.name for p in (ROOT / "specs").glob("*.yaml")}
    assert {"houlsby.yaml", "prefix.yaml", "prompt.yaml", "ptuning2.yaml"} <= packaged


def test_passes_cannot_be_imported_as_a_second_copy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "import peftc.passes, not the folder `passes`" in done.stderr


def test_importing_peftc_loads_nothing_heavy() -> None:
    code = "import peftc, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
