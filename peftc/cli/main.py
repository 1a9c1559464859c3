"""`peftc`: finds the verbs, runs one, and turns what goes wrong into an exit code."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
import traceback
from typing import Annotated, Any

import typer

import peftc
from peftc.cli import verbs
from peftc.cli.console import complain, console, emit
from peftc.diagnostics import Diagnostic, PeftcError

BUG, USAGE, INTERRUPTED = 1, 2, 130
ABOUT = "A compiler for model surgery: a YAML spec and a Hugging Face model in, a graph out."


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
    app = typer.Typer(
        help=ABOUT,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="--debug after any verb shows the traceback of a failure.",
    )
    app.callback()(root)
    names = [m.name for m in pkgutil.iter_modules(verbs.__path__)]
    modules = [importlib.import_module(f"{verbs.__name__}.{n}") for n in names]
    for module in sorted(modules, key=lambda m: m.ORDER):
        name = module.__name__.rpartition(".")[2]
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def main(argv: list[str] | None = None) -> None:
    """The console entry point."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run the program; its exit code."""
    debug = "--debug" in argv
    as_json = "--json" in argv
    argv = [a for a in argv if a != "--debug"] or ["--help"]
    try:
        code = build()(args=argv, standalone_mode=False, prog_name="peftc")
        return code if isinstance(code, int) else 0
    except PeftcError as refusal:
        if debug:
            traceback.print_exc()
        report(refusal.diagnostics, as_json)
        return refusal.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console(stderr=True).print("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as bug:
        if hasattr(bug, "format_message"):  # a wrong command line, from whichever parser typer has
            report([usage(bug)], as_json)
            return USAGE
        if debug:
            traceback.print_exc()
        text = f"{type(bug).__name__}: {str(bug).splitlines()[0] if str(bug) else ''}"
        console(stderr=True).print(
            f"this is a bug in peftc: {text}\nrun again with --debug and report what it prints",
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
