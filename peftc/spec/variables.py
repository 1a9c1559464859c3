"""The variables of a spec, and the values that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftc.ground.diagnostics import Diagnostic, Mistakes, Span
from peftc.spec.expressions import evaluate, is_expression
from peftc.spec.problems import clipped, listed, near, shown
from peftc.spec.source import Source


def variables_of(
    data: dict[str, Any],
    given: dict[str, Any],
    source: Source,
    spans: Mapping[str, Span | None],
    bad: Mistakes,
) -> dict[str, Any]:
    """The spec's variables, with those given in place of its own.

    E007 for a variable that the spec does not have, or a value of another type.
    """
    own = data.get("vars") or {}
    if not isinstance(own, dict):
        bad.append(Diagnostic("E005", "`vars` is a mapping", source.span("vars")))
        return {}
    spec = data.get("name") or source.file
    for name, value in given.items():
        if name not in own:
            help = [f"did you mean `{n}`?" for n in near(name, own)]
            help.append(f"variables of `{spec}`: {listed(own)}")
            message = f"`{name}` is no variable of `{spec}`"
            bad.append(Diagnostic("E007", message, spans.get(name), help=tuple(help)))
        elif not same_kind(value, own[name]):
            message = f"`{name}` is {kind_of(own[name])} in `{spec}`, not {shown(value)}"
            help = (f"it is {shown(own[name])} unless another value is given",)
            bad.append(Diagnostic("E007", message, spans.get(name), help=help))
    return {**own, **{n: v for n, v in given.items() if n in own and same_kind(v, own[n])}}


def kind_of(value: Any) -> str:
    """What sort of thing a variable holds."""
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else "text"


def same_kind(value: Any, other: Any) -> bool:
    """Whether a value can stand for another: numbers for numbers, otherwise the same type."""
    numbers = (int, float)
    return type(value) is type(other) or (type(value) in numbers and type(other) in numbers)


def substituted(
    value: Any, where: tuple, variables: Mapping[str, Any], source: Source, bad: Mistakes
) -> Any:
    """The value with every expression evaluated."""
    if isinstance(value, dict):
        return {k: substituted(v, (*where, k), variables, source, bad) for k, v in value.items()}
    if isinstance(value, list):
        return [substituted(v, (*where, k), variables, source, bad) for k, v in enumerate(value)]
    if not is_expression(value) or where in (("about",), ("name",)):
        return value
    try:
        return evaluate(value, variables)
    except KeyError as cause:
        name = str(cause.args[0])
        help = [f"did you mean `${n}`?" for n in near(name, variables)]
        help.append(f"variables: {listed(variables)}")
        message = f"`${name}` is not a variable of this spec"
    except ValueError as cause:
        message, help = (
            f"`{clipped(value)}`: {cause}",
            ["only $names, numbers and + - * / can be used"],
        )
    bad.append(Diagnostic("E007", message, source.span(*where), help=tuple(help)))
    return 1  # a stand-in, so that the rest is still checked
