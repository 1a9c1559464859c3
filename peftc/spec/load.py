"""A name, a path or a mapping -> Spec: parsed, variables set, `use` expanded, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftc.ground.diagnostics import Diagnostic, Mistakes, PeftcError, Span, error
from peftc.spec.deltas import all_deltas
from peftc.spec.find import find, source_of
from peftc.spec.insertion import Insertion
from peftc.spec.legal import illegal, narrowing, together
from peftc.spec.parse import VALUES, read_source
from peftc.spec.problems import diagnostics, listed, near
from peftc.spec.resolved import Spec
from peftc.spec.schema import Use, Written
from peftc.spec.source import Source
from peftc.spec.tasks import with_tasks
from peftc.spec.variables import substituted, variables_of

NESTING = 8  # of `use`: more is taken for a circle
USES = 200  # in all: specs that use others twice over grow without end
CHANGES = ("layers", "without", "stack", "optional", "share")  # what a `use` can say anew


@dataclass(frozen=True)
class Trail:
    """The files whose `use` led here, and the number of values of each spec used so far.

    `within` is the folder that what they use must lie in; None where it may lie anywhere.
    """

    within: Path | None
    files: tuple[str, ...] = ()
    used: list[int] = field(default_factory=list)


def load_spec(
    source: str | Path | Mapping[str, Any],
    set: Mapping[str, object] | None = None,
    *,
    allow_use_anywhere: bool = False,
) -> Spec:
    """Load and resolve a spec: a shipped name, a path, or a mapping.

    `set` gives variables of the spec new values. What a spec uses is shipped, or lies in its own
    folder (of a mapping: the working folder) or below it; with `allow_use_anywhere` anywhere.

    Raises:
        PeftcError: every E0xx of the spec, all at once where that is possible.
    """
    parsed, base = source_of(source), Path()
    trail = Trail(None if allow_use_anywhere else home_of(parsed, base))
    return resolve(parsed, dict(set or {}), base, trail)


def home_of(source: Source, base: Path) -> Path:
    """The folder that paths in a spec count from: its own, or `base` where it is no file."""
    path = Path(source.file)
    return path.parent if path.is_file() else base


def resolve(
    source: Source,
    given: dict[str, Any],
    base: Path,
    trail: Trail | None = None,
    spans: Mapping[str, Span | None] | None = None,
    for_task: bool = False,
) -> Spec:
    """Resolve a parsed spec with some of its variables given.

    `trail` is how `use` led here, and `spans` are the places of the given values. With `for_task`
    they are those of one task, and the insertions are what it has.

    Raises:
        PeftcError: with every mistake of the spec, and of those it uses.
    """
    data = source.data
    if not isinstance(data, dict):
        help = ("it begins with:  peftc: 1", "copy one: peftc specs cp lora my.yaml")
        raise error("E005", "a spec is a mapping", span=source.span(), help=help)
    bad, trail = Mistakes(), trail or Trail(home_of(source, base))
    variables = variables_of(data, given, source, spans or {}, bad)
    filled = {
        k: substituted(v, (k,), variables, source, bad) for k, v in data.items() if k != "vars"
    }
    filled["vars"] = variables
    entries = filled.get("insert")
    shells = dict(filled)
    if isinstance(entries, list):
        shells["insert"] = []
    try:
        written = Written.model_validate(shells)
    except ValidationError as failure:
        bad += diagnostics(failure, source, (), Written)
        written = None
    parts: list[Insertion | Use | None] = []
    for k, entry in enumerate(entries if isinstance(entries, list) else []):
        parts.append(entry_of(entry, k, source, bad))
    duplicate_ids(parts, source, bad)
    insert: list[Insertion] = []
    unfreeze, places = list(written.unfreeze) if written else [], []
    tasks = dict(written.tasks) if written else {}
    for k, part in enumerate(parts):
        if isinstance(part, Use):
            try:
                inner = used(part, k, source, base, trail, bad)
            except PeftcError as refusal:
                bad += refusal.diagnostics
                continue
            insert += inner.insert
            places += [k] * len(inner.insert)
            unfreeze += [u for u in inner.unfreeze if u not in unfreeze]
            if inner.tasks and tasks:
                span = source.span("insert", k, "use")
                message = f"`{part.use}` has tasks of its own, as this spec has"
                bad.append(Diagnostic("E013", message, span))
            tasks |= inner.tasks
        elif part is not None:
            insert.append(part)
            places.append(k)
    if written is not None and len(parts) == len(set(places)):
        check_fold(written, insert, source, bad)
    if None not in parts and not bad:
        for n, wrong in together(insert):
            span = source.span("insert", places[n], *wrong.where)
            bad.append(Diagnostic(wrong.code, wrong.message, span, wrong.label, help=wrong.help))
    if bad or written is None:
        raise PeftcError(sorted(bad, key=lambda d: in_order(d, source)))
    if not for_task:
        if len(tasks) * len(source.values) > VALUES:
            message = f"{len(tasks)} tasks of {len(source.values)} values are more than {VALUES:,}"
            raise error("E012", message, span=source.key("tasks"))

        def resolved_with(name: str, variables: Mapping[str, Any]) -> tuple[Insertion, ...]:
            keys = {n: source.key("tasks", name, "set", n) for n in variables}
            own = {**(spans or {}), **keys}
            return resolve(source, {**given, **variables}, base, trail, own, True).insert

        insert = with_tasks(tasks, insert, places, source, resolved_with)
        tasks = {n: t.model_copy(update={"set": {}}) for n, t in tasks.items()}
    return Spec(written, insert, unfreeze, source, places, variables, tasks)


def check_fold(written: Written, insert: list[Insertion], source: Source, bad: Mistakes) -> None:
    """Every id under `export.fold` is an insertion that can be merged: E004, E402."""
    if written.export is None or not isinstance(written.export.fold, list):
        return
    if not written.export.fold:
        help = ("`fold: none` merges nothing", "`fold: auto` merges what can be")
        span = source.span("export", "fold")
        bad.append(Diagnostic("E014", "`fold` names no insertion", span, help=help))
    known = {i.id: i for i in insert}
    for k, name in enumerate(written.export.fold):
        span = source.span("export", "fold", k)
        if name == "reparam" or (name in known and known[name].merges):
            continue
        if name in known:
            merging = [n for n, o in all_deltas().items() if o.merges]
            message = f"`fold: [{name}]`: {unmerged(known[name])} cannot be merged"
            help = (f"only {', '.join(merging)} have a merged form; no gate of theirs may read, "
                    "and an update reads what the linear reads",)  # fmt: skip
            bad.append(Diagnostic("E402", message, span, help=help))
        else:
            help = [f"did you mean `{n}`?" for n in near(name, known)]
            help.append(f"insertions: {listed(known)}; or reparam")
            message = f"`{name}` is no insertion of this spec"
            bad.append(Diagnostic("E004", message, span, help=tuple(help)))


def unmerged(insertion: Insertion) -> str:
    """An insertion that has no merged form, in words."""
    kind, gate = insertion.delta.kind, insertion.gate
    if gate is not None and gate.reads != "none":
        return f"a {kind} behind a gate that reads"
    sequential = type(insertion.delta.options).merges
    return f"a {kind} that reads {insertion.reads}" if sequential else f"a {kind}"


def entry_of(entry: Any, k: int, source: Source, bad: Mistakes) -> Insertion | Use | None:
    """One entry of `insert`: a use of another spec, or an insertion."""
    model = Use if isinstance(entry, dict) and "use" in entry else Insertion
    try:
        part = model.model_validate(entry)
    except ValidationError as failure:
        bad += diagnostics(failure, source, ("insert", k), model)
        return None
    if isinstance(part, Insertion):
        for wrong in illegal(part, entry):
            span = source.span("insert", k, *wrong.where)
            bad.append(Diagnostic(wrong.code, wrong.message, span, wrong.label, help=wrong.help))
    return part


def in_order(d: Diagnostic, source: Source) -> tuple[bool, int, int]:
    """By place in the file, before what stands in other files."""
    if d.span is None:
        return False, 0, 0
    return d.span.file != source.file, d.span.line, d.span.column


def duplicate_ids(parts: list[Any], source: Source, bad: Mistakes) -> None:
    """Two insertions of one id would share their parameters' names."""
    seen: dict[str, int] = {}
    for k, part in enumerate(parts):
        if part is None:
            continue
        if part.id in seen:
            bad.append(
                Diagnostic(
                    "E005",
                    f"the id `{part.id}` is given twice",
                    source.span("insert", k, "id"),
                    help=("ids name the parameters: give each insertion its own",),
                )
            )
        seen[part.id] = k


def used(part: Use, k: int, source: Source, base: Path, trail: Trail, bad: Mistakes) -> Spec:
    """The insertions of another spec, named after the entry that uses it."""
    span = source.span("insert", k, "use")
    path = find(part.use, home_of(source, base), span, within=trail.within)
    files = (*trail.files, source.file)
    if path.resolve() in [Path(f).resolve() for f in files] or len(files) > NESTING:
        names = " > ".join(Path(f).name for f in (*files, path))
        raise error("E009", f"specs use one another in a circle: {names}", span=span)
    if len(trail.used) >= USES or sum(trail.used) > VALUES:
        message = f"this uses more than {USES} specs, or specs of more than {VALUES:,} values"
        raise error("E012", message, span=span)
    brought = read_source(path)
    trail.used.append(len(brought.values))
    spans = {n: source.key("insert", k, "set", n) for n in part.set}
    further = Trail(trail.within, files, trail.used)
    inner = resolve(brought, dict(part.set), path.parent, further, spans)
    changes = {n: getattr(part, n) for n in CHANGES if getattr(part, n) is not None}
    alone = len(inner.insert) == 1
    inner.insert = tuple(
        i.model_copy(update={**changes, "id": part.id if alone else f"{part.id}_{i.id}"})
        for i in inner.insert
    )
    for insertion in inner.insert:
        for wrong in narrowing(insertion) if changes else ():
            place = source.span("insert", k, *wrong.where)
            bad.append(Diagnostic(wrong.code, wrong.message, place, wrong.label, help=wrong.help))
    return inner
