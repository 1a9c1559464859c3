"""pydantic's errors -> diagnostics at the very token, each mistake said once."""

from __future__ import annotations

import difflib
import re
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from peftc.ground.diagnostics import MOST, Diagnostic
from peftc.spec.layers import ChoosesNothing
from peftc.spec.source import Source

KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def diagnostics(
    failure: ValidationError, source: Source, prefix: tuple, model: type
) -> list[Diagnostic]:
    """One diagnostic for each mistake of a validated part, in the order of the file."""
    found: list[Diagnostic] = []
    errors = failure.errors()
    inside = Counter(e["loc"][:k] for e in errors for k in range(len(e["loc"]) + 1))
    for one in errors[: 10 * MOST]:  # some are of one mistake
        around = one["loc"][:-1]
        mapping = one["type"] == "literal_error" and isinstance(one["input"], dict)
        if mapping and around and inside[around] > 1:
            continue  # the other branch of a union says what is wrong inside
        names_key = one["type"] in ("missing", "extra_forbidden")
        where = in_file(prefix, one["loc"], source, names_key=names_key)
        found.append(diagnostic(one, where, source, keys_at(model, one["loc"][:-1])))
    return deduplicated(found)


def in_file(prefix: tuple, loc: tuple, source: Source, *, names_key: bool) -> tuple:
    """Pydantic's location as the file has it: tags of unions and implied lists left out.

    `names_key` says that the last part is a key that the file may lack.
    """
    where = prefix
    for k, part in enumerate(loc):
        known = (*where, part) in source.values or (*where, part) in source.keys
        if known or (names_key and k == len(loc) - 1):
            where = (*where, part)
    return where


def diagnostic(one: Any, where: tuple, source: Source, allowed: list[str]) -> Diagnostic:
    """One of pydantic's errors as a diagnostic."""
    kind, name = one["type"], where[-1] if where else ""
    parent = ".".join(map(str, where[:-1]))
    if kind == "extra_forbidden":
        help = [f"did you mean `{c}`?" for c in near(str(name), allowed)]
        help.append(f"keys allowed here: {', '.join(allowed)}")
        label = f"not a key of `{parent}`" if parent else "not a key of a spec"
        return Diagnostic(
            "E003", f"unknown key `{name}`", source.key(*where), label, help=tuple(help)
        )
    if kind in ("literal_error", "enum"):
        choices = [c.strip("'") for c in one["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        help = [f"did you mean `{c}`?" for c in near(str(one["input"]), choices)]
        help.append(f"one of: {', '.join(choices)}")
        key = next((p for p in reversed(where) if isinstance(p, str)), name)
        return Diagnostic(
            "E004",
            f"`{clipped(str(one['input']))}` is not a valid `{key}`",
            source.span(*where),
            help=tuple(help),
        )
    if kind == "missing":
        return Diagnostic(
            "E005",
            f"`{name}` is missing",
            source.span(*where[:-1]),
            f"needs `{name}`",
            help=(f"keys here: {', '.join(allowed)}",),
        )
    text, help = one["msg"].removeprefix("Value error, "), ()
    if kind in KINDS:
        text = f"`{name}` is {KINDS[kind]}, not {shown(one['input'])}"
        if kind in ("int_type", "float_type") and is_number(one["input"]):
            help = (f"without quotes: {one['input']}",)
    elif kind != "value_error":
        text = re.sub(r"^(Input|List|String) should ", "must ", text)
        text = f"`{name}` {text}, not {shown(one['input'])}"
    cause = one.get("ctx", {}).get("error")
    if isinstance(cause, ChoosesNothing):
        span = source.span(*where) if cause.key is None else source.key(*where, cause.key)
        return Diagnostic("E014", text, span)
    return Diagnostic("E005", text, source.span(*where), help=help)


def is_number(value: Any) -> bool:
    """Whether a text is a number in quotes."""
    try:
        return isinstance(value, str) and float(value) == float(value)
    except ValueError:
        return False


def shown(value: Any) -> str:
    """A value as it might have been written, short."""
    text = repr(value) if isinstance(value, str) else str(value)
    return clipped({"None": "nothing", "True": "true", "False": "false"}.get(text, text))


def clipped(text: str) -> str:
    """At most 40 characters."""
    return text if len(text) <= 40 else f"{text[:37]}..."


def near(word: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The choices that `word` may be a misspelling of; not looked for among very many."""
    return difflib.get_close_matches(word, list(islice(choices, 500)), count, 0.6)


def listed(names: Iterable[str]) -> str:
    """Names with commas between them, the first thirty where there are more."""
    every = list(names)
    rest = f" and {len(every) - 30} more" if len(every) > 30 else ""
    return ", ".join(every[:30]) + rest if every else "none"


def deduplicated(found: list[Diagnostic]) -> list[Diagnostic]:
    """Each mistake once: a misspelt key is not also a missing one, nor a choice a wrong type."""
    misspelt = {
        d.help[0].removeprefix("did you mean `").removesuffix("`?")
        for d in found
        if d.code == "E003" and d.help[0].startswith("did you mean")
    }
    chosen = {d.span: d for d in found if d.code == "E004"}
    kept: dict[Any, Diagnostic] = {}
    for d in found:
        if d.code == "E005" and any(d.message == f"`{m}` is missing" for m in misspelt):
            continue
        if d.code == "E005" and d.span in chosen:
            if "` must be" in d.message:  # the number that may stand there as well
                choice = chosen[d.span]
                also = f"or a number that is{d.message.partition('must be')[2].partition(',')[0]}"
                kept[choice.span] = replace(choice, help=(*choice.help, also))
            continue
        before = kept.get(d.span)
        if d.code == "E005" and before is not None and " is " in d.message:
            kept[d.span] = either(before, d)
        else:
            kept.setdefault(d.span if d.code in ("E004", "E005") else (d.span, d.message), d)
    return list(kept.values())


def either(a: Diagnostic, b: Diagnostic) -> Diagnostic:
    """Two branches of a union that both refuse a value, as one mistake."""
    subject, _, kinds = a.message.partition(" is ")
    wanted, _, given = kinds.rpartition(", not ")
    other, _, value = b.message.removeprefix(f"{subject} is ").rpartition(", not ")
    if value != given or wanted == other or not wanted or not b.message.startswith(subject):
        return a
    wanted = wanted.replace("a whole number", "a number")
    text = wanted if other in ("a number", "a whole number") else f"{wanted} or {other}"
    return replace(a, message=f"{subject} is {text}, not {given}")


def keys_at(model: type, loc: tuple) -> list[str]:
    """The keys allowed at a location inside a model."""
    current: list[Any] = [model]
    for part in loc:
        following: list[Any] = []
        for m in models_in(current):
            if isinstance(part, str) and part in m.model_fields:
                following.append(m.model_fields[part].annotation)
            elif not isinstance(part, str) or m.__name__ == part:
                following.append(m)
        current = following or current
    return list(dict.fromkeys(k for m in models_in(current) for k in m.model_fields))


def models_in(annotations: list[Any]) -> list[type[BaseModel]]:
    """The models that annotations mention, through lists, unions and optionals."""
    found: list[type[BaseModel]] = []
    for a in annotations:
        if isinstance(a, type) and issubclass(a, BaseModel):
            found.append(a)
        elif get_origin(a) in (list, tuple, Union, types.UnionType, dict):
            found += models_in(list(get_args(a)))
    return found
