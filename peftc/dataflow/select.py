"""Selectors: the places that an entry of `at` names, and what to say when it names none."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import Tensor, fx

from peftc.capture.piece_name import of_path
from peftc.capture.program import Program
from peftc.capture.walk import module_of
from peftc.dataflow.axes import feature_axis
from peftc.dataflow.facts import Facts
from peftc.dataflow.operations import lookup_of
from peftc.dataflow.report import spans
from peftc.dataflow.site import Attention, Site, Sites
from peftc.spec import Layers, ModuleGlob


def select(
    sites: Sites, at: str | ModuleGlob, layers: Layers, stack: str
) -> list[Site | Attention]:
    """The places of a role or of a module glob, in the graph's order.

    Raises:
        ValueError: where `layers` names a layer that the model does not have.
    """
    if isinstance(at, ModuleGlob):
        return list(modules_matching(sites.program, at.module, at.end))
    places = [p for p in (*sites.sites, *sites.attentions) if p.role == at]
    if stack != "any":
        places = [p for p in places if p.stack == stack]
    stacks = {s: count for s, count in sites.layers.items() if stack in ("any", s)}
    chosen = {s: set(layers.select(count)) for s, count in stacks.items()}
    return [p for p in places if p.layer is None or p.layer in chosen.get(p.stack, ())]


def modules_matching(program: Program, glob: str, end: str = "output") -> list[Site]:
    """A site for every module whose path matches: h is what the module gives, or what it reads."""
    facts = Facts(program)
    paths = dict.fromkeys(p for p in module_paths(program) if fnmatchcase(p, glob))
    at = module_site if end == "output" else module_input
    return [site for p in paths if (site := at(facts, p)) is not None]


def module_paths(program: Program) -> list[str]:
    """The paths of all modules that computed some node, parents included."""
    found: dict[str, None] = {}
    for node in program.graph.nodes:
        parts = module_of(node).split(".")
        for k in range(1, len(parts) + 1):
            found[".".join(parts[:k])] = None
    return [p for p in found if p]


def module_site(facts: Facts, path: str) -> Site | None:
    """The last value made in a module that something outside of it reads."""
    inside = [n for n in facts.nodes if within(n, path) and features_of(facts, n)[0]]
    leaving = [n for n in inside if any(not within(u, path) for u in n.users)]
    if not leaving:
        return None
    h = leaving[-1]
    weight = x = in_width = None
    made_by = [p for p in facts.projections.values() if within(p.node, path)]
    lookups = [n for n in inside if facts.op[n] == "embedding"]
    if len(made_by) == 1 and made_by[0].h is h:
        p = made_by[0]
        weight = p.weight_at(tuple(range(p.width)))
        x, in_width = p.x, p.in_width
    width, axis = features_of(facts, h)
    return Site(
        role=of_path(path),
        layer=None,
        stack="",
        module=path,
        h=h,
        width=width,
        x=x,
        in_width=in_width,
        readers=tuple(u for u in h.users if not within(u, path)),
        weight=weight,
        lookup=lookup_of(lookups[0]) if len(lookups) == 1 and not made_by else None,
        features=axis,
    )


def features_of(facts: Facts, node: fx.Node) -> tuple[int, int | None]:
    """(width, axis) of a value's features; (0, ...) where they are not of a fixed number.

    The axis is -1 where it is the last, and None where none is known.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim():
        return 0, None
    axis = feature_axis(facts, node)
    size = value.shape[-1 if axis is None else axis]
    width = size if isinstance(size, int) else 0
    return width, -1 if axis == value.dim() - 1 else axis


def module_input(facts: Facts, path: str) -> Site | None:
    """The one activation that a module reads, which changes for this module alone."""
    inside = [n for n in facts.nodes if within(n, path)]
    read = {
        m: None
        for n in inside
        for m in facts.active_inputs(n)
        if not within(m, path) and m.meta["val"].is_floating_point()
    }
    if len(read) != 1:
        return None
    h = next(iter(read))
    readers = tuple(n for n in inside if h in n.all_input_nodes)
    role = of_path(f"{path}.input")
    width, axis = features_of(facts, h)
    return Site(role, None, "", path, h, width, readers=readers, own=True, features=axis)


def within(node: fx.Node, path: str) -> bool:
    """Whether a node was computed in the module at `path` or inside it."""
    own = module_of(node)
    return own == path or own.startswith(path + ".")


def explain_no_match(
    sites: Sites, at: str | ModuleGlob, layers: Layers, stack: str
) -> tuple[str, list[str], list[str]]:
    """(label, notes, help) for an entry that matched nothing: what is near, what this model has."""
    if isinstance(at, ModuleGlob):
        paths = module_paths(sites.program)
        return f"0 of {len(paths)} modules", [], near_modules(sites, at.module, paths)
    if everywhere := places_of(sites, at):
        where = places_of(sites, at, stack)
        if stack != "any" and not where:
            stacks = [s for s in dict.fromkeys(p.stack for p in everywhere) if s]
            has = f"it is in the {' and '.join(stacks)}" if stacks else "this model has one stack"
            return f"none in the {stack}", [has], [] if stacks else ["leave `stack` out"]
        has = spans(sorted({p.layer for p in where if p.layer is not None}))
        return f"none of `layers: {layers.text}`", [f"this model has it in the layers {has}"], []
    roles = sites.roles
    help = [f"did you mean `{r}`?" for r in difflib.get_close_matches(at, roles, 1, 0.7)]
    return "this model has no such site", [], [*help, f"sites of this model: {', '.join(roles)}"]


def places_of(sites: Sites, role: str, stack: str = "any") -> list[Site | Attention]:
    """Every place of a role, in one stack or in any."""
    places = [p for p in (*sites.sites, *sites.attentions) if p.role == role]
    return [p for p in places if stack in ("any", p.stack)]


def near_modules(sites: Sites, glob: str, paths: list[str]) -> list[str]:
    """The nearest glob that matches, and the role that names the same places."""
    best = nearest_glob(glob, paths)
    if best is None:
        return ["`peftc sites MODEL --modules` lists them"]
    matched = [p for p in paths if fnmatchcase(p, best)]
    help = [f"did you mean `{best}`? ({len(matched)} modules)"]
    for role in sites.roles:
        places = [p.module for p in places_of(sites, role)]
        if sorted(places) == sorted(matched):
            count = f"the same {len(matched)}" if len(matched) > 1 else "the same"
            help.append(f"the role `{role}` matches {count} and works on other models")
    return help


def nearest_glob(glob: str, paths: list[str]) -> str | None:
    """The glob over `paths`, layer numbers as stars, that `glob` may be a misspelling of."""
    starred = dict.fromkeys(
        ".".join("*" if part.isdigit() else part for part in p.split(".")) for p in paths
    )
    last = glob.rpartition(".")[2]
    # The last part counts most: it says which module, the others where it is.
    ends = {s.rpartition(".")[2] for s in starred}
    meant = difflib.get_close_matches(last.strip("*") or last, ends, 1, 0.6)
    repaired = f"{glob.removesuffix(last)}{meant[0]}" if meant else glob
    if any(fnmatchcase(p, repaired) for p in paths):
        return repaired
    pool = [s for s in starred if meant and s.rpartition(".")[2] == meant[0]] or list(starred)
    near = difflib.get_close_matches(glob, pool, 1, 0.4)
    if near:
        return near[0]
    return pool[0] if meant and len(pool) == 1 else None
