"""The merged checkpoint: what `from_pretrained` loads, without peftc."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from peftc.backends.base import Backend, Exported
from peftc.backends.wanted import Wanted
from peftc.backends.weights import BASE, Source, base_files, write
from peftc.capture.load import load_model
from peftc.capture.program import Program, attribute
from peftc.capture.stored import Stored, StoredWeights
from peftc.capture.weight_files import INDEX, read_header
from peftc.ground.diagnostics import error
from peftc.passes.base import settled
from peftc.rewrite.applied import Applied
from peftc.rewrite.merging import insertions

# What a model folder holds beside its config and weights: the tokenizer's files and the like.
COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
NOT_COPIED = ("config.json", "adapter_config.json", INDEX)


class Hf(Backend):
    """`config.json`, `model.safetensors` under the model's own names, the tokenizer's files.

    Only where nothing is left of the insertions but changed weights. Shards stay shards. One
    tensor is in memory at a time, so that the base is never there twice.
    """

    kind: ClassVar[str] = "hf"
    streams: ClassVar[bool] = True
    merges: ClassVar[bool | None] = True
    runner: ClassVar[Path] = Path(__file__).parent / "runners" / "run_hf.py"

    def check(self, graph: Program, program: Program) -> None:
        """Refuse a graph that is more than the model with other weights.

        Raises:
            PeftcError: E411, naming each insertion that is left, and why it is.
        """
        import transformers

        name = graph.signature.model_class
        if not hasattr(transformers, name):
            raise error(
                "E411",
                f"transformers has no {name} that `from_pretrained` could load",
                help=("onnx and torchscript need none of its code",),
            )
        left = insertions(program)
        if left:
            raise error(
                "E411",
                f"{', '.join(left)} cannot be merged into the model's weights",
                notes=tuple(f"{k}: {v.sites} sites, {v.why}" for k, v in left.items()),
                help=("onnx and torchscript keep every piece",),
            )

    def wanted(self, program: Program, graph: Program) -> Mapping[str, Wanted]:
        """The tensors of the model's state_dict, those that the graph does not use as well."""
        stored = base_files(graph)
        return {
            name: Wanted(s.give.read, place=s.give)
            if isinstance(s.give, Stored)
            else Wanted(s.give, exact=False)
            for name, s in sources_of(program, {}, stored).items()
        }

    def places(self, exported: Exported) -> Mapping[str, Stored]:
        """Where the tensors of the checkpoint lie."""
        files = [exported.folder / f for f in exported.files if f.endswith(".safetensors")]
        return {name: place for path in files for name, place in read_header(path).items()}

    def lookup(self, exported: Exported) -> Callable[[str, Tensor], Tensor | None]:
        """Reads one tensor after the other."""
        places = self.places(exported)
        return lambda name, wanted: places[name].read() if name in places else None

    def write(self, program: Program, folder: Path, options: Mapping[str, Any]) -> str:
        """Write the checkpoint."""
        stored: StoredWeights | None = options["stored"]
        applied: Applied | None = options["applied"]
        sources = sources_of(program, options["places"], stored)
        shards = sharded(sources, stored)
        for file, names in shards.items():
            write(folder / file, {n: sources[n] for n in names})
        write_config(program, folder)
        for path in beside(applied.reference if applied else None, stored):
            shutil.copyfile(path, folder / path.name)
        if len(shards) == 1:
            return next(iter(shards))
        index = {
            "metadata": {"total_size": sum(s.length for s in sources.values())},
            "weight_map": {n: file for file, names in shards.items() for n in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return INDEX


def sources_of(
    program: Program, places: Mapping[str, Stored], stored: StoredWeights | None
) -> dict[str, Source]:
    """Where the numbers of each tensor of the model's state_dict come from; tied ones once.

    Weights that the graph does not use are the base's own, where a file has them.
    """
    signature = program.signature
    model = load_model(signature.config, architecture=signature.model_class, weights=False)
    tied: dict[str, str] = model.all_tied_weights_keys
    own = [n for n, _ in (*program.named_parameters(), *program.named_buffers())]
    used = {tied.get(n, n): n for n in own}
    sources = {}
    for name, value in model.state_dict().items():
        if name in tied:
            continue
        place = places.get(used.get(name, ""))
        if name in used and place is None:
            tensor = attribute(program, used[name])
            give = partial(settled, program, used[name])
            sources[name] = Source(tensor.dtype, tuple(tensor.shape), give)
            continue
        key = stored.same_name(name, value.shape) if stored and place is None else None
        place = stored.tensors[key] if stored and key else place
        if place is not None and place.dtype is not None:
            sources[name] = Source(place.dtype, place.shape, place)
    return sources


def sharded(sources: Mapping[str, Source], stored: StoredWeights | None) -> dict[str, list[str]]:
    """The files of the checkpoint, and the tensors in each: as the base has them."""
    if stored is None or len(stored.files) < 2:
        return {BASE: list(sources)}
    files: dict[str, list[str]] = {p.name: [] for p in stored.files}
    for name, source in sources.items():
        key = stored.same_name(name, source.shape)
        file = stored.tensors[key].file if key else stored.files[0]
        files[file.name].append(name)
    return {f: names for f, names in files.items() if names}


def write_config(program: Program, folder: Path) -> None:
    """The model's config, with its class and the dtype of its weights."""
    config = copy.deepcopy(program.signature.config)
    config.architectures = [program.signature.model_class]
    config.dtype = str(next(program.parameters()).dtype).removeprefix("torch.")
    config.save_pretrained(folder)


def beside(reference: str | None, stored: StoredWeights | None) -> list[Path]:
    """The files of the base's folder that are neither its config nor its weights."""
    folder = Path(reference) if reference else None
    if (folder is None or not folder.is_dir()) and stored is not None:
        folder = stored.files[0].parent
    if folder is None or not folder.is_dir():
        return []
    return [
        p
        for p in sorted(folder.iterdir())
        if p.is_file()
        and p.suffix in COPIED
        and p.name not in NOT_COPIED
        and not p.name.startswith((".", "peftc."))
    ]
