"""One file, whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from peftc.ground.output.exchange import NEW
from peftc.ground.output.guard import check_absent
from peftc.ground.output.place import place_of, unwritable
from peftc.ground.output.recover import sweep
from peftc.ground.output.staging import room_in
from peftc.ground.output.tree import flush_folder, flush_one


def write_text(
    path: str | Path,
    text: str,
    *,
    force: bool = False,
    inputs: Sequence[str | Path | None] = (),
) -> None:
    """Write one file, beside first and then moved into place.

    Raises:
        PeftcError: E306, E316 and E318 as `check_absent`, E503 where it cannot be written, E504
            where the disk is full.
    """
    check_absent(path, force=force, inputs=inputs)
    place = place_of(path)
    try:
        sweep(place.parent)
        with room_in(place.parent) as room:
            new = room / NEW
            new.write_text(text, encoding="utf-8")
            if place.exists():
                shutil.copymode(place, new)
            flush_one(new)
            if force:
                new.replace(place)
            else:
                move(new, place)
            flush_folder(place.parent)
    except FileExistsError:
        check_absent(path)  # somebody wrote it in the meantime
        raise
    except OSError as cause:
        raise unwritable(path, cause) from cause


def move(new: Path, place: Path) -> None:
    """Rename, but never over another file.

    Raises:
        FileExistsError: where there is one.
    """
    try:
        os.link(new, place)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if place.exists():
            raise FileExistsError(str(place)) from None
        new.rename(place)
