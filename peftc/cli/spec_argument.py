"""A SPEC on the command line: a shipped name, a path, or a saved plan, which names its model."""

from __future__ import annotations

from typing import Any

from peftc.cli.options import assignments, task_for
from peftc.ground.diagnostics import error

# What `open_model` takes of a plan's options, which are these, the model and the static length.
OPENING = ("task", "labels", "revision", "dtype", "attn")


def read_spec(
    reference: str, pairs: list[str] | None = None, *, anywhere: bool = False
) -> tuple[Any, dict[str, Any] | None]:
    """The resolved spec of a SPEC, and the contents of the plan where it is one.

    `anywhere`: whether what it uses may lie outside of its folder.

    Raises:
        PeftcError: E0xx for the spec, E304 for a plan that cannot be read, E008 for --set on one.
    """
    from peftc.planning.file import is_plan, read_plan
    from peftc.spec import load_spec

    if not is_plan(reference):
        given = assignments(pairs)
        return load_spec(reference, set=given, allow_use_anywhere=anywhere), None
    if pairs:
        raise error(
            "E008",
            f"--set {pairs[0]}: {reference} is a saved plan, which has decided it",
            help=("give it before: peftc plan SPEC MODEL --set NAME=VALUE -o plan.json",),
        )
    return read_plan(reference)


def spec_and_options(
    reference: str,
    model: str | None,
    pairs: list[str] | None,
    given: dict[str, Any],
    *,
    anywhere: bool = False,
) -> tuple[Any, dict[str, Any], dict[str, Any] | None]:
    """The resolved spec; the model and how to open it; and the plan where SPEC is one.

    A plan says what is not given.

    Raises:
        PeftcError: as `read_spec`; E008 where no model is named.
    """
    resolved, planned = read_spec(reference, pairs, anywhere=anywhere)
    options = {"model": model, **given}
    if planned is not None:
        said = planned["options"]
        options = {n: said.get(n) if v is None else v for n, v in options.items()}
    if options["model"] is None:
        raise error("E008", "no model is given", help=("give a folder or a hub name after SPEC",))
    options["task"] = task_for(resolved, options["task"])
    return resolved, options, planned
