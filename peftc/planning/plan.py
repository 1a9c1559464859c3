"""A plan: every insertion of a spec at its places in one model, with sizes and counts. Data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftc.dataflow.site import Attention, Site, Sites
from peftc.ground.diagnostics import Diagnostic
from peftc.planning.heads import PlannedHead
from peftc.spec import Insertion, Spec


@dataclass(frozen=True)
class Planned:
    """One insertion of the spec at its places. `parameters` counts what it adds."""

    insertion: Insertion
    places: tuple[Site | Attention, ...]
    counts: dict[str, int]  # places by entry of `at`
    parameters: int

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it touches, in order."""
        return tuple(sorted({p.layer for p in self.places if p.layer is not None}))


@dataclass(frozen=True)
class Plan:
    """What `apply` will do to one model: data, no tensors."""

    spec: Spec
    sites: Sites
    insertions: tuple[Planned, ...]
    unfrozen: tuple[str, ...]  # parameters of the base that become trainable
    notes: tuple[Diagnostic, ...]
    base: int  # parameters of the captured model
    unfrozen_count: int
    heads: tuple[PlannedHead, ...] = ()
    longest: Mapping[str, int] = field(default_factory=dict)  # tokens, by axis of the inputs

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks by which a bank tells its pieces apart; none where there is one at most."""
        return tuple(h.task for h in self.heads) if len(self.heads) > 1 else ()

    def labels(self, task: str = "") -> tuple[str, ...]:
        """The labels of a task, of the only one, or of the model itself."""
        return task_labels(self.spec, task, self.sites)

    @property
    def inserted(self) -> int:
        """Parameters that the insertions and the heads of tasks add."""
        return sum(p.parameters for p in (*self.insertions, *self.heads))

    @property
    def trainable(self) -> int:
        """Parameters that will have gradients."""
        return self.inserted + self.unfrozen_count

    def to_json(self) -> dict[str, Any]:
        """The plan as data: every place with its module path and sizes."""
        return {
            "format_version": "1.0",
            "spec": self.spec.name,
            "model": self.sites.program.signature.model_class,
            "insertions": [
                {
                    "id": p.insertion.id,
                    "delta": p.insertion.delta.kind,
                    "compose": p.insertion.composition.kind,
                    "parameters": p.parameters,
                    **({"share": p.insertion.share} if p.insertion.share else {}),
                    "sites": [place_json(place) for place in p.places],
                }
                for p in self.insertions
            ],
            **({"tasks": [h.to_json() for h in self.heads]} if self.heads else {}),
            "unfrozen": list(self.unfrozen),
            "parameters": {
                "base": self.base,
                "inserted": self.inserted,
                "trainable": self.trainable,
            },
            "notes": [n.to_json() for n in self.notes],
        }


def task_labels(spec: Spec, task: str, sites: Sites) -> tuple[str, ...]:
    """The labels of a task, of the only one, or of the model itself."""
    only = next(iter(spec.tasks)) if len(spec.tasks) == 1 else None
    head = spec.tasks.get(task or only or "")
    return head.head.options.names if head else labels_of(sites.program.signature.config)


def labels_of(config: Any) -> tuple[str, ...]:
    """The names of a model's labels, in the order of its scores."""
    names = getattr(config, "id2label", None) or {}
    return tuple(str(names[k]) for k in sorted(names, key=int))


def place_json(place: Site | Attention) -> dict[str, Any]:
    """A place as data."""
    if isinstance(place, Attention):
        sizes = {
            "heads": place.heads,
            "kv_heads": place.kv_heads,
            "head_dim": place.head_dim,
            "value_dim": place.value_dim,
        }
    else:
        sizes = {"width": place.width, "in_width": place.in_width}
    return {
        "name": place.name,
        "role": place.role,
        "layer": place.layer,
        "stack": place.stack,
        "module": place.module,
        **sizes,
    }
