"""The output of a command, claimed before anything is loaded and until the command ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

COMMAND = ExitStack()  # what is let go of when a verb ends


def claim(out: Path, *, force: bool = False, inputs: Sequence[str | Path | None] = ()) -> None:
    """Be the only writer of `out`, and refuse now what could not be written in the end.

    `inputs` are what the command reads, which `force` never replaces.

    Raises:
        PeftcError: as `peftc.ground.output.staging.staged`.
    """
    from peftc.ground.output.claim import claimed
    from peftc.ground.output.guard import check_free

    COMMAND.enter_context(claimed(out))
    check_free(out, force=force, inputs=inputs)
