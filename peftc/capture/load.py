"""A folder, a hub name or a config -> PreTrainedModel, with the head that a task asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from peftc.capture.fake import without_weights
from peftc.capture.suitable import UNQUANTISED
from peftc.capture.weight_files import stored_weights
from peftc.ground.diagnostics import PeftcError, error
from peftc.ground.machine import machine_error

# The names people give tasks, and transformers' own factory for each.
TASKS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
    "feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
}
SEED = 0  # of weights that the checkpoint does not have: a fresh head is the same every time


def load_model(
    reference: Any,
    *,
    task: str | None = None,
    labels: str | None = None,
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
    random_weights: bool = False,
    fake: bool = False,
) -> Any:
    """Load a model: a folder, a hub name, or a config object.

    Without `weights` the tensors are meta tensors and no weights are read; with `fake` the
    parameters are fake tensors on the CPU, and buffers are real. `labels` is a number or names
    with commas. `architecture` and `config` name the very class and settings, as a lock
    file does.

    Raises:
        PeftcError: E205 where there is no such model, E206 for a task that it cannot have, E207
            where weights are missing, E208 for quantised ones, E213 for an architecture that is
            no model class, E215 where weights do not fit the config, E502 where the hub cannot be
            asked.
    """
    import transformers
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(reference, PretrainedConfig):
        settings, source = reference, None
    else:
        source = str(reference)
        check_reference(source)
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        settings = guarded(lambda: AutoConfig.from_pretrained(source, **options), source)
    if config is not None:
        settings = guarded(lambda: as_said(settings, config, source), source or "the config")
    set_labels(settings, labels)
    check_unquantised(settings, source)
    own = getattr(settings, "auto_map", None) if trust_remote_code else None
    factory = factory_of(settings, task, architecture, transformers, own or {})
    kwargs: dict[str, Any] = {"attn_implementation": attn} if attn else {}
    if own and hasattr(factory, "from_config"):
        kwargs["trust_remote_code"] = True
    wanted = getattr(torch, dtype) if dtype else None
    if fake:
        options = {**kwargs, "dtype": wanted or settings.dtype or torch.float32}
        return guarded(
            lambda: without_weights(lambda: built(factory, settings, options)), source or ""
        ).eval()
    if source is None or not weights or (random_weights and not has_weights(source)):
        device = "cpu" if random_weights or (source is None and weights) else "meta"
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(SEED)
            options = {**kwargs, "dtype": wanted or torch.float32}
            model = guarded(lambda: built(factory, settings, options), source or "the config")
        return model.eval()
    if Path(source).is_dir() and not has_weights(source):
        raise error(
            "E207",
            f"{source} has a config but no model.safetensors",
            help=(
                "`plan` and `sites` need no weights",
                "to build the model with random weights: peftc apply --random-weights",
            ),
        )
    with explained(factory, settings, kwargs, source, revision), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return guarded(
            lambda: factory.from_pretrained(
                source,
                config=settings,
                revision=revision,
                dtype=wanted or "auto",
                use_safetensors=True,
                **kwargs,
            ),
            source,
        ).eval()


def as_said(settings: Any, config: Mapping[str, Any], source: str | None) -> Any:
    """A config with all the values that a lock has, in place of those found.

    Raises:
        PeftcError: E215 where it is of another type of model.
    """
    wanted = config.get("model_type")
    if wanted != settings.model_type:
        raise error("E215", f"{source} is a {settings.model_type} model, not a {wanted} model")
    made = type(settings).from_dict(dict(config))
    made._name_or_path = source or ""  # where code of the model's own is
    return made


def check_unquantised(settings: Any, source: str | None) -> None:
    """Refuse a checkpoint of packed numbers, before anything of it is loaded.

    Raises:
        PeftcError: E208.
    """
    said = getattr(settings, "quantization_config", None)
    if said:
        method = said.get("quant_method") if isinstance(said, dict) else said.quant_method
        raise error(
            "E208",
            f"{source or 'the model'} is quantised"
            + (f" with {getattr(method, 'value', method)}" if method else ""),
            notes=("its config.json has a quantization_config",),
            help=UNQUANTISED,
        )


def check_reference(source: str) -> None:
    """Refuse what is neither a folder with a config nor shaped like a hub name."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise error(
            "E205",
            f"{source} has no config.json, so it is no model folder",
            help=("give the folder that `save_pretrained` wrote",),
        )
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not path.exists() and looks_like_path:
        raise error("E205", f"{source}: no such folder", help=("check the path",))
    if path.is_file():
        raise error(
            "E205",
            f"{source} is a file; a model is a folder or a hub name",
            help=(f"give its folder: {path.parent}",),
        )


def has_weights(source: str) -> bool:
    """Whether a folder holds safetensors; hub names are taken to have them."""
    return not Path(source).is_dir() or any(Path(source).glob("*.safetensors"))


def set_labels(settings: Any, labels: str | None) -> None:
    """Put the labels of the task into the config."""
    if labels is None:
        return
    names = [n.strip() for n in labels.split(",")]
    if len(names) == 1:
        if not names[0].isdigit() or int(names[0]) < 1:
            raise error("E008", f"--labels {labels}: a number, or names with commas between them")
        names = [f"LABEL_{k}" for k in range(int(names[0]))]
    settings.id2label = dict(enumerate(names))
    settings.label2id = {n: k for k, n in enumerate(names)}


def factory_of(
    settings: Any,
    task: str | None,
    architecture: str | None,
    library: Any,
    own: Mapping[str, Any],
) -> Any:
    """What makes the model: the class itself, or transformers' factory for the task.

    `own` are the factories for which the model comes with classes of its own.
    """
    name = architecture or next(iter(getattr(settings, "architectures", None) or []), None)
    if task is None:
        if isinstance(name, str) and (found := model_class(name, library)) is not None:
            return found
        for factory, path in own.items():
            if str(path).rpartition(".")[2] == name:
                return getattr(library, factory)
        if architecture is not None:
            raise error(
                "E213",
                f"{architecture} is no model class of transformers",
                help=(
                    "a newer transformers may have it: pip install -U transformers",
                    "a class of your own: give the model, peftc.load(folder, model)",
                    "a model with code of its own: --trust-remote-code",
                ),
            )
        task = "feature-extraction"
    factory = TASKS.get(task)
    if factory is None:
        import difflib

        near = difflib.get_close_matches(task, TASKS, 1)
        raise error(
            "E206",
            f"`{task}` is no task",
            help=(*[f"did you mean `{n}`?" for n in near], f"tasks: {', '.join(TASKS)}"),
        )
    made = getattr(library, factory)
    if factory not in own and type(settings) not in made._model_mapping:
        able = [t for t, f in TASKS.items() if type(settings) in getattr(library, f)._model_mapping]
        raise error(
            "E206",
            f"a {settings.model_type} model cannot have the task {task}",
            help=(f"it can have: {', '.join(able)}",),
        )
    return made


def model_class(name: str, library: Any) -> Any:
    """The class of transformers that a file names, or None: models alone, nothing else of it."""
    found = getattr(library, name, None)
    is_model = isinstance(found, type) and issubclass(found, library.PreTrainedModel)
    return found if is_model and hasattr(found, "config_class") else None


@contextmanager
def explained(
    factory: Any, settings: Any, options: dict[str, Any], source: str, revision: str | None
) -> Iterator[None]:
    """Where loading fails since tensors in the files have other shapes, say which.

    Raises:
        PeftcError: E215.
    """
    try:
        yield
    except PeftcError as refusal:
        files = stored_weights(source, revision)
        with torch.device("meta"):
            made = guarded(lambda: built(factory, settings, options), source)
        wrong = [
            f"{n}: {list(found[0])} in the files, {list(p.shape)} by the config"
            for n, p in made.named_parameters()
            if files and (found := files.shapes_of(n)) and tuple(p.shape) not in found
        ]
        if not wrong:
            raise
        raise error(
            "E215",
            f"the weights in {source} do not fit its config",
            notes=tuple(wrong[:3]),
            help=(
                "other labels than the head has: leave out --labels, or start from a base without "
                "a head",
                "a model that was resized in memory: model.save_pretrained(FOLDER) first",
            ),
        ) from refusal


def built(factory: Any, settings: Any, options: dict[str, Any]) -> Any:
    """A model from its config alone."""
    if hasattr(factory, "from_config"):
        return factory.from_config(settings, **options)
    return factory._from_config(settings, **options)


def guarded(load: Any, source: str) -> Any:
    """Run a loader of transformers, its complaints as ours."""
    try:
        return load()
    except PeftcError:
        raise
    except Exception as cause:  # whatever the model's own code raises
        if machine_error(cause) is not None:
            raise
        first = next((t.strip() for t in str(cause).splitlines() if t.strip()), "")
        if not Path(source).is_dir() and isinstance(cause, OSError):
            raise error(
                "E502",
                f"{source} is neither a folder nor in the local cache, "
                "and the hub could not be asked",
                notes=(first[:200],),
                help=("give a folder with config.json and model.safetensors",),
            ) from cause
        known = isinstance(cause, OSError | ValueError)
        raise error(
            "E205",
            f"transformers cannot load {source}",
            notes=((first if known else f"{type(cause).__name__}: {first}")[:300],),
            help=(
                "a newer transformers may know it: pip install -U transformers",
                "a model with code of its own: --trust-remote-code",
            ),
        ) from cause


def load_tokenizer(reference: str | None) -> Any:
    """The tokenizer that stands beside a model's weights.

    Raises:
        PeftcError: E083 where there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(reference)
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            raise ValueError("made from the config alone, without a vocabulary")
        return tokenizer
    except (OSError, ValueError, TypeError) as cause:
        raise error(
            "E083",
            f"{reference or 'the base model'} has no tokenizer that can be loaded",
            help=("give the folder that has it with --model",),
        ) from cause
