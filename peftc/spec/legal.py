"""Which deltas may stand where, what they read and how they compose: refused before any model."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from peftc.spec.delta import DeltaOptions
from peftc.spec.deltas import all_deltas
from peftc.spec.insertion import ROLES, Insertion
from peftc.spec.sizes import Sizes

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
READS = {"sequential": ("h", "stream"), "parallel": ("x",)}  # what `reads` may add to `form`


@dataclass(frozen=True)
class Illegal:
    """One thing wrong with an insertion, at a key of it."""

    code: str
    where: tuple[str | int, ...]
    message: str
    label: str = ""
    help: tuple[str, ...] = ()


def illegal(insertion: Insertion, written: Collection[str]) -> Iterator[Illegal]:
    """Everything wrong with an insertion whose keys and values are right each by itself.

    `written` are the keys that the file has; the others were filled in.
    """
    facts: type[DeltaOptions] = type(insertion.delta.options)
    kind, compose = facts.kind, insertion.composition.kind
    if not IDENTIFIER.fullmatch(insertion.id):
        rule = "letters, digits and _, no digit first"
        yield Illegal("E005", ("id",), f"`{insertion.id}` cannot be an id", rule)
    elif keyword.iskeyword(insertion.id):
        yield Illegal("E005", ("id",), f"`{insertion.id}` cannot be an id", "a word of Python")
    if compose not in facts.composes:
        label = f"composes by {' or '.join(facts.composes)}"
        yield Illegal("E010", ("compose",), f"`{kind}` does not compose by `{compose}`", label)
    for j, at in enumerate(insertion.at):
        name = at if isinstance(at, str) else "module"
        if name not in places_of(facts):
            able = [n for n, other in all_deltas().items() if name in places_of(other)]
            yield Illegal(
                "E010",
                ("at", j),
                f"`{kind}` cannot stand at `{name}`",
                help=(
                    f"`{kind}` can stand at: {', '.join(places_of(facts))}",
                    f"at `{name}` can stand: {', '.join(able)}",
                ),
            )
    gate = insertion.gate
    if gate is not None and gate.reads != "none" and not 0 < gate.init < 1:
        where = ("compose", compose, *(() if compose == "gate" else ("gate",)), "init")
        message = f"a gate that reads starts between 0 and 1, not at {gate.init:g}"
        yield Illegal("E005", where, message, "sigmoid is never there")
    yield from reading(insertion, facts, written)
    yield from narrowing(insertion)


def places_of(facts: type[DeltaOptions]) -> list[str]:
    """The roles where a delta may stand, and `module` where it may stand at any."""
    return [r for r in (*ROLES, "module") if any(fnmatchcase(r, glob) for glob in facts.sites)]


def reading(
    insertion: Insertion, facts: type[DeltaOptions], written: Collection[str]
) -> Iterator[Illegal]:
    """`form` and `reads` that mean nothing, or say two things."""
    form, reads = insertion.form, insertion.reads
    if facts.form is None:
        for name in ("form", "reads"):
            if name in written and getattr(insertion, name) is not None:
                message = f"`{facts.kind}` reads nothing, so `{name}` has no meaning"
                yield Illegal("E010", (name,), message)
    elif form and reads and {"form", "reads"} <= set(written) and reads not in READS[form]:
        message = f"`form: {form}` reads {READS[form][0]}; `reads: {reads}` says otherwise"
        yield Illegal("E010", ("reads",), message, help=("leave one of the two out",))


def narrowing(insertion: Insertion) -> Iterator[Illegal]:
    """`layers`, `without` and `stack` beside an entry that has neither layer nor stack."""
    for at in insertion.at:
        glob = not isinstance(at, str)
        name = f"module: {at.module}" if not isinstance(at, str) else at
        help = ("say it in the glob: `*.0.*`",) if glob else ()
        if insertion.layers.written != "all" and (glob or at == "embed.out"):
            message = f"`{name}` has no layers to choose from"
            yield Illegal("E010", ("layers",), message, help=help)
        if insertion.without is not None and not insertion.layered:
            message = f"`{name}` has no layers to leave out"
            yield Illegal("E010", ("without",), message, help=help)
        if insertion.stack != "any" and glob:
            yield Illegal("E010", ("stack",), f"`{name}` has no stacks to choose from")
    yield from choosing_nothing(insertion)


def choosing_nothing(insertion: Insertion) -> Iterator[Illegal]:
    """`without` that leaves nothing of `layers`, and sizes of layers that are not chosen."""
    layers, gone = insertion.layers, insertion.without
    if not insertion.layered:
        return
    if gone is not None and not insertion.optional and not layers.can_meet(without=gone):
        message = f"`layers: {layers.text}` without {gone.text} leaves no layer"
        yield Illegal("E014", ("without",), message, help=("if that is meant: `optional: true`",))
    for name, sizes in insertion.delta.options:
        for key, part in sizes.parts.items() if isinstance(sizes, Sizes) else ():
            if not part.can_meet(layers):
                message = f"the size of `{key}` is for no layer that `{insertion.id}` stands in"
                yield Illegal("E014", ("delta", insertion.delta.kind, name, key), message)


def together(insert: Sequence[Insertion]) -> Iterator[tuple[int, Illegal]]:
    """What is wrong with insertions beside one another, each with the number of the one to blame.

    All prompts of a stack stand in one sequence: it is cut or not, and shows its padding or not.
    What mixes tokens in front of a prompt would read the room that is kept for the prompt.
    """
    for stacks in (("any", "encoder"), ("decoder",)):  # of two stacks, `any` is the encoder
        there = [(k, i) for k, i in enumerate(insert) if "embed.out" in i.at and i.stack in stacks]
        prompts = [(k, i) for k, i in there if i.composition.kind == "prepend"]
        for k, i in prompts[1:]:
            first = prompts[0][1]
            for name, value in first.composition.options:
                own = getattr(i.composition.options, name)
                if own != value:
                    message = f"`{name}` of `{i.id}` and of `{first.id}` differ"
                    help = ("both stand in one sequence: say the same at each",)
                    yield k, Illegal("E015", ("compose",), message, help=help)
        for k, i in there:
            later = next((p for n, p in prompts if n > k), None)
            if later is not None and mixes(i.delta.options):
                message = f"`{i.id}` mixes tokens before the prompt `{later.id}` is there"
                help = (f"put `{later.id}` before `{i.id}`",)
                yield k, Illegal("E016", ("id",), message, help=help)


def mixes(options: DeltaOptions) -> bool:
    """Whether a delta reads neighbouring tokens."""
    steps = list(getattr(options, "steps", ()))
    while steps:
        step = steps.pop()
        if step.kind == "conv1d":
            return True
        if step.kind == "residual":
            steps += step.options
    return False
