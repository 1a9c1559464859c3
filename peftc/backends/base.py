"""What a backend is, and how one is found by its name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from peftc.backends.wanted import Wanted, wanted_of
from peftc.capture.program import Program
from peftc.capture.stored import Stored
from peftc.ground.diagnostics import Diagnostic, error


@dataclass(frozen=True)
class Exported:
    """An export on disk: its folder, format, and the model file that a runtime opens."""

    folder: Path
    kind: str
    file: str
    files: tuple[str, ...]
    facts: Mapping[str, Any]
    notes: tuple[Diagnostic, ...] = ()  # what whoever uses the file is to know


class Backend(ABC):
    """One export format.

    `runner` is a script for the format's own runtime alone, in which nothing of this package is
    imported: its function `opened(FILE, threads)`, given also what `arguments` says, returns what
    binds a set of inputs to the model, as a call that gives its outputs.
    """

    kind: ClassVar[str]
    extra: ClassVar[str | None] = None  # the pip extra that it needs
    links: ClassVar[bool] = False  # whether its files can point into the base's own
    streams: ClassVar[bool] = False  # whether it takes weights one at a time, as it writes them
    requires: ClassVar[tuple[str, ...]] = ()  # the modules that the extra brings
    runner: ClassVar[Path]
    ships: ClassVar[tuple[Path, ...]] = ()  # scripts that go beside the model
    merges: ClassVar[bool | None] = None  # whether pieces are always, or never, merged
    real_only: ClassVar[bool] = False  # whether outputs at padding are another matter

    def check(self, graph: Program, program: Program) -> None:  # noqa: B027 (most take every graph)
        """Refuse a graph that the format cannot express; `program` is what it was folded to."""

    def arguments(self, graph: Program, folder: Path) -> tuple[str, ...]:
        """What the runner is given besides, made in a folder that it may read."""
        return ()

    @abstractmethod
    def write(self, program: Program, folder: Path, options: Mapping[str, Any]) -> str:
        """Write the model into `folder`; the name of the file that a runtime opens."""

    def notes(self, program: Program) -> tuple[Diagnostic, ...]:
        """What whoever uses the file is to know; the export says it, and writes it down."""
        return ()

    def tensors(self, exported: Exported) -> Mapping[str, Tensor]:
        """The weights in an exported file by their names; empty where they cannot be listed."""
        return {}

    def wanted(self, program: Program, graph: Program) -> Mapping[str, Wanted]:
        """The tensors that the file of a graph is to hold; `program` is what it was folded to."""
        return wanted_of(program, graph)

    def lookup(self, exported: Exported) -> Callable[[str, Tensor], Tensor | None]:
        """What finds the tensor of a name in a file; it is given the numbers that are wanted."""
        held = self.tensors(exported)
        return lambda name, wanted: held.get(name)

    def listings(self, program: Program, exported: Exported) -> tuple[list[str], list[str]]:
        """What the graph is as text once it is converted anew, and what the file is.

        Both empty where a format has no text.
        """
        return [], []

    def places(self, exported: Exported) -> Mapping[str, Stored]:
        """Where tensors lie in the files of an export, those that may be the base's own bytes."""
        return {}

    def session_options(self, *, linked: bool) -> dict[str, str]:
        """The settings that a runtime is to open the file with."""
        return {}

    def check_tools(self) -> None:
        """Refuse to export without what writing the format needs.

        Raises:
            PeftcError: as `check_installed`.
        """
        self.check_installed()

    def check_installed(self) -> None:
        """Refuse to start without the packages that the format needs.

        Raises:
            PeftcError: E403, naming the extra.
        """
        missing = [m for m in self.requires if importlib.util.find_spec(m) is None]
        if missing:
            raise error(
                "E403",
                f"exporting to {self.kind} needs {', '.join(missing)}",
                help=(f"pip install 'peftc[{self.extra}]'",),
            )


def backends() -> dict[str, Backend]:
    """Every backend by name, found by walking this package."""
    import peftc.backends as package

    found: dict[str, Backend] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Backend) and "kind" in vars(value):
                found[value.kind] = value()
    return found


def backend(kind: str) -> Backend:
    """The backend called `kind`.

    Raises:
        PeftcError: E401 for an unknown one.
    """
    found = backends()
    if kind not in found:
        near = difflib.get_close_matches(kind, found, 1)
        raise error(
            "E401",
            f"cannot export to {kind}",
            help=(*[f"did you mean `{n}`?" for n in near], f"targets: {', '.join(found)}"),
        )
    return found[kind]
