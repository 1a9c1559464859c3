"""Arguments and options that verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.common import PANEL
from peftc.ground.diagnostics import error

MODEL_PANEL = "Model options"


def spec_names(incomplete: str) -> list[str]:
    """Shipped specs that begin so, for completion in a shell."""
    from peftc.spec.catalogue import names

    return [n for n in names() if n.startswith(incomplete)]


SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="A shipped name (houlsby), a path, or a saved plan.",
        autocompletion=spec_names,
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder or a hub name; config.json is enough.")
]
PlannedModel = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A folder or a hub name; a plan names its own."),
]
ArtifactArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="An artifact folder, or one of its runs.")
]
Base = Annotated[str | None, typer.Option(help="The base model, if not where it was.")]
StaticLength = Annotated[
    int | None,
    typer.Option(
        "--static-length",
        min=1,
        metavar="N",
        help="Capture for inputs of exactly N tokens.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object instead of text.", rich_help_panel=PANEL),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Give a variable of the spec a new value."),
]
Anywhere = Annotated[
    bool,
    typer.Option("--allow-use-anywhere", help="Let `use` name files outside of the spec's folder."),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help="The head: sequence-classification, token-classification, causal-lm, ...",
        rich_help_panel=MODEL_PANEL,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="N|A,B,C",
        help="Labels: a number, or names with commas.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="REV",
        help="A branch, tag or commit of a hub model.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="float32, bfloat16 or float16.", rich_help_panel=MODEL_PANEL),
]
Attn = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="Attention: sdpa or eager.", rich_help_panel=MODEL_PANEL),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run model code from the hub.", rich_help_panel=MODEL_PANEL
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Build the model from its config alone.",
        rich_help_panel=MODEL_PANEL,
    ),
]

Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tol", help="The largest difference that passes; what rounding does, if left out."
    ),
]
Without = Annotated[
    str | None,
    typer.Option("--without", metavar="LAYERS", help="Leave out the pieces of layers: 0-4."),
]
Only = Annotated[
    str | None, typer.Option("--insertion", metavar="ID", help="With --without: of this one only.")
]


def task_for(spec: Any, task: str | None) -> str | None:
    """The head to load the model with: none where the spec's tasks bring heads of their own."""
    return "feature-extraction" if task is None and spec.tasks else task


def assignments(pairs: list[str] | None) -> dict[str, Any]:
    """`--set` pairs as values: numbers as numbers, true and false as such, the rest as text.

    Raises:
        PeftcError: E008 for a pair without a name or an equals sign.
    """
    result: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise error("E008", f"--set {pair}: write NAME=VALUE", help=("--set rank=16",))
        result[name] = typed(value)
    return result


def typed(text: str) -> Any:
    """A value as YAML 1.2 reads it."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


DTYPES = ("float32", "bfloat16", "float16", "float64")


def open_model(
    reference: str,
    *,
    task: str | None = None,
    labels: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    trust: bool = False,
    weights: bool = True,
    random_weights: bool = False,
) -> Any:
    """Load a model as the options say, transformers' own chatter switched off.

    Raises:
        PeftcError: as `load_model`; E008 for an unknown dtype or attention.
    """
    if dtype is not None and dtype not in DTYPES:
        raise error(
            "E008",
            f"--dtype {dtype}: no such type of number",
            help=(f"one of: {', '.join(DTYPES)}",),
        )
    if attn not in (None, "sdpa", "eager"):
        raise error("E008", f"--attn {attn}: no such attention", help=("one of: sdpa, eager",))
    from transformers.utils import logging

    from peftc.capture.load import load_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_model(
        reference,
        task=task,
        labels=labels,
        revision=revision,
        dtype=dtype,
        attn=attn,
        trust_remote_code=trust,
        weights=weights,
        random_weights=random_weights,
    )
