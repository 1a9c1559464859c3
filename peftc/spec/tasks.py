"""`tasks` and `share`: what each task has for itself, as a variant of the insertions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftc.ground.diagnostics import Diagnostic, PeftcError
from peftc.spec.deltas import all_deltas
from peftc.spec.insertion import Insertion, Variant
from peftc.spec.legal import IDENTIFIER, illegal
from peftc.spec.problems import near
from peftc.spec.schema import Task
from peftc.spec.source import Source

SIZES = {"scale", "init"}  # of a composition: what may differ from task to task
VARIED = {"delta", "compose", "share", "by_task"}


def with_tasks(
    tasks: Mapping[str, Task],
    insert: Sequence[Insertion],
    places: Sequence[int],
    source: Source,
    resolved_with: Callable[[str, Mapping[str, Any]], Sequence[Insertion]],
) -> list[Insertion]:
    """The insertions, each with what `set` under a task makes different for that task.

    `resolved_with(name, variables)` gives the same insertions under other variables.

    Raises:
        PeftcError: E013 where tasks and insertions do not fit together, all of it at once.
    """
    bad: list[Diagnostic] = []

    def wrong(
        message: str, *where: str | int, help: Iterable[str] = (), code: str = "E013"
    ) -> None:
        bad.append(Diagnostic(code, message, source.key(*where), help=tuple(help)))

    if not tasks:
        for k, i in zip(places, insert, strict=True):
            if i.share is not None or i.by_task:
                key = "share" if i.share is not None else "by_task"
                help = ("tasks: {ner: {head: {token_classification: {labels: 9}}}}",)
                wrong(f"`{key}` says which task has what, but the spec has no tasks",
                      "insert", k, key, help=help)  # fmt: skip
    for name in tasks:
        if not IDENTIFIER.fullmatch(name):
            wrong(f"`{name}` is no name: letters, digits and _, no digit first", "tasks", name)
    for k, i in zip(places, insert, strict=True):
        if tasks and i.id == "tasks":
            wrong("the heads are called `tasks`: give the insertion another id", "insert", k, "id")
        if tasks and i.composition.kind == "prepend" and not i.composition.options.trim:
            help = ("leave `trim` out: heads read the tokens' own states",)
            wrong("a prompt that is not cut away leaves no token its place", "insert", k, "compose",
                  help=help)  # fmt: skip
        if tasks and getattr(i.delta.options, "ensemble", None):
            wrong("an ensemble votes on one model's outputs, not on those of tasks", "insert", k,
                  "delta", help=("leave `ensemble` out",))  # fmt: skip
        check_share(tasks, i, k, wrong)
    if bad:
        raise PeftcError(bad)
    variants: dict[str, Sequence[Insertion]] = {}
    for name in [n for n, task in tasks.items() if task.set]:
        try:
            variants[name] = resolved_with(name, tasks[name].set)
        except PeftcError as refusal:
            note = f"with the variables of the task `{name}`"
            bad += [replace(d, notes=(*d.notes, note)) for d in refusal.diagnostics]
    if bad:
        raise PeftcError(bad)
    made = []
    used: set[str] = set()
    for n, (k, i) in enumerate(zip(places, insert, strict=True)):
        own: dict[str, Variant] = {}
        for task in tasks:
            other = variants[task][n] if task in variants else i
            if task in variants and i.share != "per_task" and said(other) != said(i):
                used.add(task)
                help = (f"to give it its own: `share: per_task` at `{i.id}`",)
                wrong(f"`set` changes `{i.id}`, which all tasks share", "tasks", task, "set",
                      help=help)  # fmt: skip
            elif i.share == "per_task":
                used |= {task} if said(other) != said(i) else set()
                mine = other.for_task(task)
                for w in illegal(mine, ()):
                    wrong(w.message, "insert", k, "by_task", task, help=w.help, code=w.code)
                variant = variant_of(i, mine, task, k, wrong)
                if variant is not None:
                    own[task] = variant
        made.append(i.model_copy(update={"by_task": own or None}))
    for task in variants.keys() - used:
        help = ("variables reach the insertions with `share: per_task` that use them",)
        wrong(f"`set` changes no piece of `{task}`", "tasks", task, "set", help=help)
    if bad:
        raise PeftcError(bad)
    return made


def check_share(
    tasks: Mapping[str, Task], i: Insertion, k: int, wrong: Callable[..., None]
) -> None:
    """Refuse shares and variants that no task can have."""
    facts = type(i.delta.options)
    if i.share == "per_task" and facts.by_task is None:
        able = ", ".join(n for n, o in all_deltas().items() if o.by_task is not None)
        wrong(f"tasks cannot each have a `{facts.kind}`", "insert", k, "share",
              help=(f"what can be `per_task`: {able}",))  # fmt: skip
    if i.by_task and tasks and i.share != "per_task":
        wrong("`by_task` needs `share: per_task`", "insert", k, "by_task")
    for name in i.by_task or {}:
        if tasks and name not in tasks:
            help = [f"did you mean `{n}`?" for n in near(name, tasks)]
            wrong(f"`{name}` is no task of this spec", "insert", k, "by_task", name,
                  help=(*help, f"tasks: {', '.join(tasks)}"), code="E004")  # fmt: skip


def variant_of(
    i: Insertion, own: Insertion, task: str, k: int, wrong: Callable[..., None]
) -> Variant | None:
    """What of an insertion is different for a task; None where it is as for all."""
    facts = type(i.delta.options)
    # The graph splits by a length what is gated, hides what stands inside the sequence, and makes
    # the mask of a cache for one length.
    gated = i.gate is not None and i.composition.kind == "attend"
    split = gated or getattr(i.delta.options, "before", None) is not None
    split = split or getattr(i.delta.options, "mask", None) == "cached"
    allowed = () if split else facts.by_task or ()
    for name, value in said(own, *VARIED).items():
        if said(i, *VARIED).get(name) != value:
            wrong(f"`{name}` of `{i.id}` differs for {task}: only sizes can", "insert", k, name)
            return None
    pairs = [(i.delta, own.delta, allowed), (i.composition, own.composition, SIZES)]
    for base, other, free in pairs:
        if base.kind != other.kind:
            wrong(f"`{i.id}` is a {base.kind}, but a {other.kind} for {task}", "insert", k, "id")
            return None
        for name in type(base.options).model_fields:
            a, b = getattr(base.options, name), getattr(other.options, name)
            if a != b and (name not in free or (a is None) != (b is None)):
                can = [n for n in free if n in type(base.options).model_fields]
                wrong(f"`{name}` of `{i.id}` cannot differ from task to task", "insert", k, "id",
                      help=(f"what can: {', '.join(can) or 'nothing'}",))  # fmt: skip
                return None
    delta = own.delta if own.delta != i.delta else None
    compose = own.composition if own.composition != i.composition else None
    return Variant(delta=delta, compose=compose) if delta or compose else None


def said(i: Insertion, *without: str) -> dict[str, Any]:
    """An insertion as data."""
    return i.model_dump(mode="json", exclude_none=True, exclude=set(without))
