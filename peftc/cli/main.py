"""`peftc`: finds the verbs, runs one, and turns what goes wrong into an exit code."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import peftc
from peftc.cli import verbs
from peftc.cli.common import examples, with_common
from peftc.cli.console import MANNER, Manner, complain, console, emit
from peftc.ground.diagnostics import Diagnostic, PeftcError, PeftcWarning, visible
from peftc.ground.machine import machine_error
from peftc.ground.signals import Ended, ending

BUG, USAGE, SIGNALLED = 1, 2, 128  # and the number of the signal that ended it
ABOUT = "A compiler for model surgery: a YAML spec and a Hugging Face model in, a graph out."
EXAMPLES = (
    "peftc demo",
    "peftc sites MODEL",
    "peftc specs cp lora my.yaml",
    "peftc plan my.yaml MODEL",
    "peftc apply my.yaml MODEL -o out --task sequence-classification --labels neg,pos",
    "peftc train out --data train.jsonl --eval dev.jsonl",
    "peftc export out/runs/001 --to onnx",
)


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        sys.stdout.write(f"peftc {peftc.__version__}\n")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """Options of the program itself."""


def build() -> typer.Typer:
    """The program with every verb: modules of `peftc.cli.verbs`, in their own order."""
    names = [m.name for m in pkgutil.iter_modules(verbs.__path__)]
    modules = [importlib.import_module(f"{verbs.__name__}.{n}") for n in names]
    modules.sort(key=lambda m: m.ORDER)

    class InOrder(TyperGroup):
        """Verbs in their own order; typer would list those with verbs below them last."""

        def list_commands(self, ctx: Any) -> list[str]:
            return [verb_of(m) for m in modules]

    app = typer.Typer(
        cls=InOrder,
        help=ABOUT,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=examples(EXAMPLES),
        pretty_exceptions_enable=False,
    )
    app.callback()(root)
    for module in modules:
        epilog = examples(getattr(module, "EXAMPLES", ()))
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb_of(module), epilog=epilog)
        else:
            function = getattr(module, module.__name__.rpartition(".")[2])
            help = paragraphs(function.__doc__)
            app.command(verb_of(module), help=help, epilog=epilog)(with_common(function))
    return app


def paragraphs(text: str) -> str:
    """A docstring with a line for each paragraph, for a terminal of any width to wrap."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def verb_of(module: ModuleType) -> str:
    """The verb of a module: its name, without the underscore that a keyword needs."""
    return module.__name__.rpartition(".")[2].rstrip("_")


def main(argv: list[str] | None = None) -> None:
    """The console entry point."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run the program; its exit code."""
    vars(MANNER).update(vars(Manner()))
    debug, as_json = "--debug" in argv, "--json" in argv
    argv = [a for a in argv if a != "--debug"] or ["--help"]
    try:
        with ending() as told, warnings.catch_warnings():
            warnings.simplefilter("always", PeftcWarning)
            warnings.showwarning = telling(warnings.showwarning)
            code = build()(args=argv, standalone_mode=False, prog_name="peftc")
            sys.stdout.flush()
        if told:  # the parser makes an exit code of its own of it
            raise Ended(told[0])
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort) as cause:
        console(stderr=True).print("interrupted")
        return SIGNALLED + (cause.number if isinstance(cause, Ended) else signal.SIGINT)
    except BrokenPipeError:
        # Whoever read has had enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as cause:
        if debug:
            traceback.print_exc()
        if isinstance(refusal := refused(cause), PeftcError):
            report(refusal.diagnostics, as_json)
            return refusal.exit_code
        return bug(cause, as_json)


def telling(other: Callable[..., None]) -> Callable[..., None]:
    """What shows a warning: ours as the diagnostics they are, any other as `other` does."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        if isinstance(message, PeftcWarning):
            complain([message.diagnostic])
        else:
            other(message, *place, **more)

    return show


def refused(cause: Exception) -> PeftcError | None:
    """A failure as an error with a code; None for a fault of this package."""
    if isinstance(cause, PeftcError):
        return cause
    if hasattr(cause, "format_message"):  # a wrong command line, from whichever parser typer has
        return PeftcError([usage(cause)])
    return machine_error(cause)


def bug(cause: Exception, as_json: bool) -> int:
    """Own up to a fault of this package."""
    text = visible(f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}")
    if as_json:
        emit({"ok": False, "bug": text})
    console(stderr=True).print(
        f"this is a bug in peftc: {text}\n"
        "run again with --debug, and report what it prints and what `peftc doctor` says",
        markup=False,
    )
    return BUG


def report(diagnostics: list[Diagnostic], as_json: bool) -> None:
    """Say what went wrong, on stderr or as JSON on stdout."""
    if as_json:
        emit({"ok": False, "diagnostics": [d.to_json() for d in diagnostics]})
    else:
        complain(diagnostics)


def usage(wrong: Any) -> Diagnostic:
    """A wrong command line as a diagnostic, with what may have been meant."""
    message, context = wrong.format_message(), getattr(wrong, "ctx", None)
    help: list[str] = []
    if context is not None and message.startswith("No such command"):
        typed = message.split("'")[1]
        verbs = context.command.list_commands(context)
        message = f"`{typed}` is no verb of {context.command_path}"
        help += [f"did you mean `{n}`?" for n in difflib.get_close_matches(typed, verbs, 1)]
        help.append(f"verbs: {', '.join(verbs)}")
    elif context is not None:
        help.append(f"{context.command_path} --help")
    return Diagnostic("E008", message[:1].lower() + message[1:].rstrip("."), help=tuple(help))


if __name__ == "__main__":
    main()
