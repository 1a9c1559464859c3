"""A name, a path or a mapping -> Spec: parsed, variables set, `use` expanded, checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peftc.diagnostics import Diagnostic, Mistakes, PeftcError, Span, error
from peftc.spec.catalogue import names, path_of
from peftc.spec.deltas import all_deltas
from peftc.spec.expressions import evaluate, is_expression
from peftc.spec.layers import Layers
from peftc.spec.legal import illegal, narrowing
from peftc.spec.problems import clipped, diagnostics, listed, near, shown
from peftc.spec.schema import Expect, Export, Insertion, Task, Unfreeze, Use, Written
from peftc.spec.source import VALUES, Source, parse, read_source
from peftc.spec.tasks import with_tasks

NESTING = 8  # of `use`: more is taken for a circle
USES = 200  # in all: specs that use others twice over grow without end
CHANGES = ("layers", "without", "stack", "optional", "share")  # what a `use` can say anew


@dataclass(frozen=True)
class Trail:
    """The files whose `use` led here, and the number of values of each spec used so far."""

    files: tuple[str, ...] = ()
    used: list[int] = field(default_factory=list)


class Spec:
    """A resolved spec: every value a value, every `use` expanded, defaults filled in."""

    def __init__(
        self,
        written: Written,
        insert: list[Insertion],
        unfreeze: list[Unfreeze],
        source: Source,
        places: list[int],
        variables: Mapping[str, Any],
        tasks: Mapping[str, Task],
    ) -> None:
        self.name: str = written.name
        self.about: str = written.about
        self.insert = tuple(insert)
        self.unfreeze = tuple(unfreeze)
        self.expect: Expect | None = written.expect
        self.export: Export | None = written.export
        self.vars = dict(variables)
        self.tasks = dict(tasks)
        self.source = source
        self._places = places  # for each insertion, the entry of the file it came from

    def span(self, *where: str | int) -> Span | None:
        """The place in the file of a value of the resolved spec, or of what it came from."""
        if len(where) > 1 and where[0] == "insert" and isinstance(where[1], int):
            where = ("insert", self._places[where[1]], *where[2:])
        return self.source.span(*where) if self.source.values else None

    def has(self, *where: str | int) -> bool:
        """Whether the file itself has a value there."""
        if len(where) > 1 and where[0] == "insert" and isinstance(where[1], int):
            where = ("insert", self._places[where[1]], *where[2:])
        return where in self.source.values

    def to_dict(self) -> dict[str, Any]:
        """The resolved spec as data that `load_spec` reads back to an equal one."""
        result: dict[str, Any] = {"peftc": 1, "name": self.name}
        if self.about:
            result["about"] = self.about
        if self.tasks:  # what their `set` made different stands at the insertions
            result["tasks"] = {n: {"head": plain(t)["head"]} for n, t in self.tasks.items()}
        result["insert"] = [plain(i) for i in self.insert]
        if self.unfreeze:
            result["unfreeze"] = [plain(u) for u in self.unfreeze]
        if self.expect is not None:
            result["expect"] = plain(self.expect)
        if self.export is not None:
            result["export"] = plain(self.export)
        return result

    def to_yaml(self) -> str:
        """The resolved spec as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def without(self, layers: object, insertion: str | None = None) -> Spec:
        """This spec with these layers left out, of one insertion or of all that stand in layers.

        `expect` goes: it counted the whole.

        Raises:
            PeftcError: E107 where `layers` is no choice of layers, E004 where there is no such
                insertion, E113 where what is named does not stand in layers.
        """
        try:
            gone = Layers(layers)
        except ValueError as cause:
            raise error("E107", f"without {layers}: {cause}") from cause
        known = {i.id: i for i in self.insert}
        if insertion is not None and insertion not in known:
            help = [f"did you mean `{n}`?" for n in near(insertion, known)]
            help.append(f"insertions: {listed(known)}")
            message = f"`{insertion}` is no insertion of {self.name}"
            raise error("E004", message, help=tuple(help))
        chosen = [i for i in self.insert if i.layered and insertion in (None, i.id)]
        if not chosen:
            raise error(
                "E113",
                f"nothing of {insertion or self.name} stands in layers, so none can be left out",
                help=("a prompt stands before all layers; a module glob names its own",),
            )
        made = copy.copy(self)
        made.expect = None
        made.insert = tuple(
            i.model_copy(update={"without": i.without | gone if i.without else gone})
            if i in chosen
            else i
            for i in self.insert
        )
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def __repr__(self) -> str:
        return f"Spec({self.name!r}, {len(self.insert)} insertions)"


def plain(part: Any) -> dict[str, Any]:
    """A part of a spec as data; what is not set is left out."""
    return part.model_dump(mode="json", exclude_none=True)


def load_spec(
    source: str | Path | Mapping[str, Any], set: Mapping[str, object] | None = None
) -> Spec:
    """Load and resolve a spec: a shipped name, a path, or a mapping.

    `set` gives variables of the spec new values.

    Raises:
        PeftcError: every E0xx of the spec, all at once where that is possible.
    """
    return resolve(source_of(source), dict(set or {}), Path.cwd())


def source_of(given: str | Path | Mapping[str, Any]) -> Source:
    """The parsed source of a name, a path or a mapping."""
    if isinstance(given, Mapping):
        text = yaml.safe_dump(plain_data(given), sort_keys=False, allow_unicode=True)
        return parse(text, "<dict>")
    return read_source(find(str(given), Path.cwd()))


def plain_data(value: Any) -> Any:
    """Mappings and sequences as dicts and lists, for YAML."""
    if isinstance(value, Mapping):
        return {str(k): plain_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(v) for v in value]
    return value


def find(name: str, base: Path, span: Span | None = None) -> Path:
    """The file that a name or path means.

    Raises:
        PeftcError: E006 where there is none.
    """
    if name in names():
        return path_of(name)
    path = base / name
    if path.is_file():
        return path
    if "/" in name or name.endswith((".yaml", ".yml")):
        beside = sorted(p.name for p in path.parent.glob("*.y*ml"))
        meant = [str(Path(name).with_name(n)) for n in near(path.name, beside)]
        help = [f"did you mean `{n}`?" for n in meant]
        raise error("E006", f"{name}: no such file", span=span, help=tuple(help))
    help = [f"did you mean `{n}`?" for n in near(name, names())]
    raise error(
        "E006",
        f"`{name}` is neither a shipped spec nor a file",
        span=span,
        help=(*help, f"shipped specs: {', '.join(names())}"),
    )


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
    bad, trail = Mistakes(), trail or Trail()
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
    known = {i.id: i for i in insert}
    for k, name in enumerate(written.export.fold):
        span = source.span("export", "fold", k)
        if name == "reparam" or (name in known and known[name].merges):
            continue
        if name in known:
            merging = [n for n, o in all_deltas().items() if o.merges]
            gated = "gated " if known[name].gate is not None else ""
            message = f"`fold: [{name}]`: a {gated}{known[name].delta.kind} cannot be merged"
            help = (f"only {', '.join(merging)} have a merged form, without a gate",)
            bad.append(Diagnostic("E402", message, span, help=help))
        else:
            help = [f"did you mean `{n}`?" for n in near(name, known)]
            help.append(f"insertions: {listed(known)}; or reparam")
            message = f"`{name}` is no insertion of this spec"
            bad.append(Diagnostic("E004", message, span, help=tuple(help)))


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


def used(part: Use, k: int, source: Source, base: Path, trail: Trail, bad: Mistakes) -> Spec:
    """The insertions of another spec, named after the entry that uses it."""
    span = source.span("insert", k, "use")
    home = Path(source.file).parent if Path(source.file).is_file() else base
    path = find(part.use, home, span)
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
    inner = resolve(brought, dict(part.set), path.parent, Trail(files, trail.used), spans)
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
