"""Why a spec does not fit a model: the words of E1xx and W1xx, and the next step."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from peftc.dataflow.report import spans
from peftc.dataflow.select import explain_no_match, nearest_glob
from peftc.dataflow.site import Attention, Site, Sites
from peftc.ground.diagnostics import Diagnostic, Span
from peftc.spec import Insertion, Spec


def no_layers(spec: Spec, k: int, key: str, cause: str, stack: str, sites: Sites) -> Diagnostic:
    """E107: layers that the model does not have."""
    stacks = {s: n for s, n in sites.layers.items() if stack in ("any", s)}
    has = " and ".join(
        f"{n} layers, 0 to {n - 1}{f', in the {s}' if s else ''}" for s, n in stacks.items()
    )
    help = ("`stack` takes one stack: encoder or decoder",) if len(stacks) > 1 else ()
    where = spec.span("insert", k, key)
    label = "" if "0 to" in cause and len(stacks) == 1 else f"this model has {has}"
    cause = cause.replace("`layers:", f"`{key}:")
    return Diagnostic("E107", cause, where, label, help=help)


def partly(
    spec: Spec, k: int, found: Sequence[Site | Attention], sites: Sites, span: Span | None
) -> Diagnostic | None:
    """W101 where a role exists in some of the chosen blocks of a stack only: hybrid models."""
    insertion, role = spec.insert[k], found[0].role
    for stack in dict.fromkeys(p.stack for p in found if p.layer is not None):
        layers = {p.layer for p in found if p.stack == stack and p.layer is not None}
        chosen = insertion.layers.select(sites.layers.get(stack, 0))
        if not chosen or len(layers) >= len(chosen):
            continue
        share = round(100 * len(layers) / len(chosen))
        blocks = "blocks" if insertion.layers.written == "all" else "chosen blocks"
        return Diagnostic(
            "W101",
            f"{role} exists in {len(layers)} of {len(chosen)} {blocks} ({share} %)",
            span,
            label=f"in layer{'s' * (len(layers) > 1)} {spans(sorted(layers))}",
            help=("the other blocks stay as they are",),
        )
    return None


def no_match(
    insertion: Insertion,
    label: str,
    at: Any,
    stack: str,
    sites: Sites,
    counts: dict[str, int],
    span: Span | None,
) -> Diagnostic:
    """Why an entry of `at` matched nothing, and what would."""
    name = sites.program.signature.model_class
    if insertion.delta.kind == "prefix" and not sites.attentions:
        return no_attention(sites, name, span)
    said, notes, help = explain_no_match(sites, at, insertion.layers, stack)
    if len(counts) > 1:
        each = ", ".join(f"{entry} {count}" for entry, count in counts.items())
        notes.append(f"{each}: every entry of a list must match")
    return Diagnostic(
        "E101",
        f"`{label}` matches nothing in {name}",
        span,
        said,
        notes=tuple(notes),
        help=(*help, "to skip it on models that lack it: `optional: true`"),
    )


def no_attention(sites: Sites, name: str, span: Span | None) -> Diagnostic:
    """E105: a prefix on a model without keys and values."""
    kinds = dict.fromkeys(s.role for s in sites.sites if s.role in ("mixer.out", "ffn.out"))
    blocks = f"its blocks have {' and '.join(kinds)}"
    fitting = {"embed.out": "prompt", "mixer.out": "bottleneck", "block.out": "bottleneck"}
    able = [f"`{role}` + {delta}" for role, delta in fitting.items() if role in sites.roles]
    return Diagnostic(
        "E105",
        f"`prefix` needs attention keys and values; {name} has none",
        span,
        notes=(blocks,) if kinds else (),
        help=(f"{', or '.join(able)} fit this model",) if able else (),
    )


def no_linear(kind: str, place: Site, span: Span | None) -> Diagnostic:
    """E109: a low-rank update where there is no linear for it to be merged into."""
    return Diagnostic(
        "E109",
        f"`{kind}` needs a linear; `{place.module or place.name}` is none",
        span,
        help=("use `bottleneck` or `pipe` there",),
    )


def no_features(place: Site, span: Span | None) -> Diagnostic:
    """E117: a value of which no axis holds features."""
    axes = place.h.meta["val"].dim()
    return Diagnostic(
        "E117",
        f"no axis of what `{place.module}` works on is known to hold features",
        span,
        label=f"a value of {axes} axes",
        help=("name a module behind it that projects, normalises or convolves",),
    )


def rank_too_large(
    place: Site, read: int, rank: int, sites: Sites, span: Span | None
) -> Diagnostic:
    """E103: a rank that reduces nothing."""
    limit = min(place.width, read)
    heads = next(
        (
            f" ({a.kv_heads} key/value heads x {a.value_dim})"
            for a in sites.attentions
            if (a.layer, a.stack) == (place.layer, place.stack)
            and place.role[-2:] in (".k", ".v")
            and a.kv_heads < a.heads
        ),
        "",
    )
    where = "" if place.layer is None else f", layer {place.layer}"
    role = place.module if place.layer is None and not place.stack else place.role
    return Diagnostic(
        "E103",
        f"rank {rank} is too large for the layer",
        span,
        label=f"{role}{where}: {read} > {place.width}{heads}",
        help=(f"rank must be below {limit} here; ranks above 64 rarely help",),
    )


def nothing_to_unfreeze(spec: Spec, k: int, entry: Any, sites: Sites) -> Diagnostic:
    """E101: an entry of `unfreeze` that names no parameter, and what is near."""
    name = sites.program.signature.model_class
    key = next(n for n in ("role", "module", "parameter") if getattr(entry, n) is not None)
    label, help = getattr(entry, key), []
    names = [n for n, _ in sites.program.named_parameters()]
    if key == "role":
        said = "this model has none"
        if label == "head":
            help.append("load the model with a head: --task sequence-classification, or another")
        has = ", ".join(r for r, found in sites.parameters.items() if found)
        help.append(f"roles of this model: {has}")
    else:
        paths = names if key == "parameter" else sorted({n.rpartition(".")[0] for n in names})
        said = f"0 of {len(paths)} {'parameters' if key == 'parameter' else 'modules'}"
        if key == "module" and any(fnmatchcase(n, label) for n in names):
            help.append(f"that names parameters: `parameter: {label}`")
        elif best := nearest_glob(label, paths):
            count = sum(fnmatchcase(p, best) for p in paths)
            help.append(f"did you mean `{best}`? ({count} of them)")
    help.append("to skip it on models that lack it: `optional: true`")
    return Diagnostic(
        "E101",
        f"unfreeze: `{label}` matches no parameter of {name}",
        spec.span("unfreeze", k, key),
        said,
        help=tuple(help),
    )
