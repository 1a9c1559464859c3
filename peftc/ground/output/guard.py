"""What an output may take the place of: nothing, or with `--force` an older output of peftc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from peftc.ground.diagnostics import error
from peftc.ground.output.hold import read_json
from peftc.ground.output.place import place_of
from peftc.ground.output.recover import HIDDEN

LOCK, EXPORT, RUN, DEMO = "peftc.lock.json", "peftc.export.json", "run.json", "peftc.demo.json"
# What files of ours begin with: plans, the schema, pages, pictures, specs.
MARKS = re.compile(
    rb'"kind": "peftc plan"|"title": "peftc spec"|"\$id": "urn:peftc:'
    rb'|<meta name="generator" content="peftc">|<!-- peftc -->|^peftc:',
    re.MULTILINE,
)
HEAD = 8192  # bytes of a file that are looked at
SHOWN = 4  # names of a folder's contents that are said


def check_free(
    folder: str | Path, *, force: bool = False, inputs: Sequence[str | Path | None] = ()
) -> None:
    """Refuse to overwrite a folder, but for an older output and with `force`.

    `inputs` are the places that the command reads; what is no path is passed over.

    Raises:
        PeftcError: E306 where `folder` is a file, or holds something and `force` is not given; with
            it E316 where the folder is, holds or lies in an input, E318 where it is no output of
            ours.
    """
    place = place_of(folder)
    there = contents(place)
    if (place.exists() and not place.is_dir()) or (there and not force):
        raise error(
            "E306",
            f"{folder} exists and is not empty",
            notes=lost(place, there),
            help=("choose another folder with -o, or overwrite it with --force",),
        )
    if not force:
        return
    for path in real(inputs):
        check_apart(folder, place, path)
    if there and not is_output(place):
        raise error(
            "E318",
            f"{folder} is no output of peftc: it holds {named(there)}",
            help=("choose another folder with -o, or remove it yourself first",),
        )


def check_absent(
    path: str | Path, *, force: bool = False, inputs: Sequence[str | Path | None] = ()
) -> None:
    """Refuse to overwrite a file, but for one of ours and with `force`.

    Raises:
        PeftcError: E306 where it exists and `force` is not given; with it E316 where the command
            reads the file, E318 where it is no file of ours.
    """
    place = place_of(path)
    if not place.exists():
        return
    if not force:
        raise error(
            "E306", f"{path} exists", help=("choose another name, or overwrite it with --force",)
        )
    if any(p == place for p in real(inputs)):
        raise error(
            "E316",
            f"{path} is an input of this command: it would be gone",
            help=("choose another name",),
        )
    if not place.is_file():
        what = "a folder" if place.is_dir() else "no regular file"
        raise error("E318", f"{path} is {what}", help=("choose another name",))
    with open(place, "rb") as file:
        head = file.read(HEAD)
    if head and not MARKS.search(head):
        raise error(
            "E318",
            f"{path} is no output of peftc: a file of {place.stat().st_size:,} bytes",
            help=("choose another name, or remove it yourself first",),
        )


def real(inputs: Iterable[str | Path | None]) -> list[Path]:
    """The inputs that exist, links followed; the others are names of shipped specs or of a hub."""
    found = []
    for path in inputs:
        with suppress(OSError, ValueError):
            if path is not None and Path(path).exists():
                found.append(Path(os.path.realpath(path)))
    return found


def check_apart(folder: str | Path, place: Path, read: Path) -> None:
    """Refuse an output that is, holds or lies in an input.

    New exports of an artifact, and older ones, lie in it.

    Raises:
        PeftcError: E316.
    """
    if place == read:
        said = "is an input of this command"
    elif place in read.parents:
        said = f"holds {read}, an input of this command"
    elif read in place.parents and not in_artifact(place, read):
        said = f"lies in {read}, an input of this command"
    else:
        return
    raise error(
        "E316",
        f"{folder} {said}: --force would replace it",
        help=("choose another folder with -o",),
    )


def in_artifact(place: Path, read: Path) -> bool:
    """Whether a place in an input is for an export of an artifact that lies between them."""
    between = [p for p in place.parents if p == read or read in p.parents]
    inside = any((p / LOCK).is_file() for p in between)
    return inside and (not contents(place) or is_export(place))


def contents(place: Path) -> list[Path]:
    """What a folder holds, but for what a killed process of ours left; nothing if it is none."""
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if not HIDDEN.fullmatch(p.name))


def is_output(place: Path) -> bool:
    """Whether a folder is one that peftc makes: an artifact, an export, a run, or the demo's."""
    if any((place / name).is_file() for name in (LOCK, DEMO)) or is_export(place):
        return True
    return "format_version" in (facts := read_json(place / RUN)) and "artifact" in facts


def is_export(place: Path) -> bool:
    """Whether a folder is an export, or a model of a Triton repository that we made."""
    served = (place / "config.pbtxt").is_file() and any(place.glob(f"*/{EXPORT}"))
    return (place / EXPORT).is_file() or served


def named(paths: Sequence[Path]) -> str:
    """Names of what lies in a folder; of many the first few, and how many more."""
    names = [f"{p.name}/" if p.is_dir() else p.name for p in paths]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def lost(place: Path, there: Sequence[Path]) -> tuple[str, ...]:
    """What --force would take away beside an artifact itself: its runs, its exports."""
    if not (place / LOCK).is_file():
        return ()
    inside = [p for p in there if p.is_dir()]
    return (f"--force would remove what lies in it as well: {named(inside)}",) if inside else ()
