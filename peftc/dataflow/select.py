"""Selectors: the places that an entry of `at` names, and what to say when it names none."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import fx

from peftc.capture.program import Program
from peftc.dataflow.facts import Facts, feature_width, lookup_of
from peftc.dataflow.site import Attention, Site, Sites, Weight
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
        parts = node.meta.get("module", "").split(".")
        for k in range(1, len(parts) + 1):
            found[".".join(parts[:k])] = None
    return [p for p in found if p]


def module_site(facts: Facts, path: str) -> Site | None:
    """The last value made in a module that something outside of it reads."""
    inside = [n for n in facts.nodes if within(n, path) and feature_width(n) is not None]
    leaving = [n for n in inside if any(not within(u, path) for u in n.users)]
    if not leaving:
        return None
    h = leaving[-1]
    weight = x = in_width = None
    made_by = [p for p in facts.projections.values() if within(p.node, path)]
    lookups = [n for n in inside if facts.op[n] == "embedding"]
    if len(made_by) == 1 and made_by[0].h is h:
        p = made_by[0]
        rows = tuple(range(p.width))
        weight = Weight(h, p.weight, p.bias, rows, p.width, p.transposed)
        x, in_width = p.x, p.in_width
    width = feature_width(h)
    return Site(
        role=path.replace(".", "_"),
        layer=None,
        stack="",
        module=path,
        h=h,
        width=width or 0,
        x=x,
        in_width=in_width,
        readers=tuple(u for u in h.users if not within(u, path)),
        weight=weight,
        lookup=lookup_of(lookups[0]) if len(lookups) == 1 and not made_by else None,
    )


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
    role = f"{path.replace('.', '_')}_input"
    return Site(role, None, "", path, h, feature_width(h) or 0, readers=readers, own=True)


def within(node: fx.Node, path: str) -> bool:
    """Whether a node was computed in the module at `path` or inside it."""
    own = node.meta.get("module", "")
    return own == path or own.startswith(path + ".")


def explain_no_match(sites: Sites, at: str | ModuleGlob) -> tuple[list[str], list[str]]:
    """(notes, help) for an entry that matched nothing: what is near, what this model has."""
    if not isinstance(at, ModuleGlob):
        return (
            ["this model has no such site"],
            [f"sites this model has: {', '.join(sites.roles)}"],
        )
    paths = module_paths(sites.program)
    pattern = at.module
    # Layer numbers as stars, so that the nearest pattern matches every layer.
    starred = {".".join("*" if part.isdigit() else part for part in p.split(".")) for p in paths}
    near = difflib.get_close_matches(pattern, sorted(starred), n=1, cutoff=0.5)
    suffixes = [s for s in sorted(starred) if s.endswith(pattern.lstrip("*"))]
    notes = [f"0 of {len(paths)} modules match"]
    help = []
    if best := (near or suffixes)[:1]:
        count = sum(fnmatchcase(p, best[0]) for p in paths)
        help.append(f"did you mean `{best[0]}`? ({count} modules)")
    help.append("`peftc sites MODEL --modules` lists them")
    return notes, help
