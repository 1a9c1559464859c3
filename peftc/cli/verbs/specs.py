"""`peftc specs`: the shipped specs."""

from __future__ import annotations

import difflib
import json as data
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from peftc.cli.common import examples, with_common
from peftc.cli.console import emit, hint, note, say, several, table
from peftc.cli.next_step import command, free
from peftc.cli.options import Anywhere, Force, Json, spec_names
from peftc.cli.spec_argument import read_spec

ORDER = 1
EXAMPLES = ("peftc specs ls", "peftc specs show lora", "peftc specs cp lora my.yaml")
app = typer.Typer(help="The shipped specs: list, show, copy, compare.")
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A shipped name, a path, or a saved plan.",
        autocompletion=spec_names,
    ),
]
Left = Annotated[
    str, typer.Argument(metavar="A", help="One spec, by name or path.", autocompletion=spec_names)
]
Right = Annotated[str, typer.Argument(metavar="B", help="The other.", autocompletion=spec_names)]


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """The shipped specs: list, show, copy, compare."""
    if context.invoked_subcommand is None:
        list_specs(as_json=False)


@app.command("ls", epilog=examples(("peftc specs ls", "peftc specs ls --json")))
@with_common
def ls(json: Json = False) -> None:
    """List the shipped specs: what each changes, and what h becomes."""
    list_specs(as_json=json)


def list_specs(*, as_json: bool) -> None:
    """Print the table of shipped specs."""
    from peftc.spec import load_spec
    from peftc.spec.catalogue import names

    counts = bert_base_counts()
    rows = []
    for name in names():
        spec = load_spec(name)
        sites = dict.fromkeys(a for i in spec.insert for a in i.at)
        rows.append(
            {
                "name": name,
                "about": spec.about,
                "sites": [str(s) for s in sites],
                "h_becomes": list(dict.fromkeys(i.formula for i in spec.insert)),
                "unfreezes": [u.role or u.module for u in spec.unfreeze],
                "bert_base": counts.get(name),
                "merges": bool(spec.insert) and all(i.merges for i in spec.insert),
            }
        )
    if as_json:
        emit({"specs": rows})
        return
    table(
        "",
        [("NAME", ""), (several(["WHAT IT", "CHANGES"], " "), ""), ("H BECOMES", ""),
         (several(["TRAINED", "(bert-base)"], " "), "right"), ("MERGES", "")],
        [
            (
                r["name"],
                several(r["sites"] or r["unfreezes"]),
                several(r["h_becomes"], "; ") or "-",
                "-" if r["bert_base"] is None else f"{r['bert_base']:,}",
                "yes" if r["merges"] else "no",
            )
            for r in rows
        ],
    )  # fmt: skip
    hint(f"Copy one:  {command('specs', 'cp', 'lora', free('my.yaml'))}")


def bert_base_counts() -> dict[str, int]:
    """Parameters that shipped specs train on BERT-base, as benchmarks/spec_counts.py wrote them.

    Counting takes a model on meta tensors, and this verb does without torch.
    """
    from peftc.spec.catalogue import folder

    return data.loads((folder() / "bert_base.json").read_text(encoding="utf-8"))


@app.command("show", epilog=examples(("peftc specs show lora", "peftc specs show mam --expanded")))
@with_common
def show(
    name: Name,
    expanded: Annotated[
        bool, typer.Option("--expanded", help="Every value resolved, every default written out.")
    ] = False,
    anywhere: Anywhere = False,
    json: Json = False,
) -> None:
    """Print a spec as it is written, or expanded."""
    if json:
        emit({"name": name, "spec": read_spec(name, anywhere=anywhere)[0].to_dict()})
    elif expanded:
        sys.stdout.write(read_spec(name, anywhere=anywhere)[0].to_yaml())
    elif sys.stdout.isatty():
        say(as_written(name).removesuffix("\n"))
    else:
        sys.stdout.write(as_written(name))


def as_written(name: str) -> str:
    """The text of a spec's file; a plan holds its spec expanded."""
    from peftc.planning.file import is_plan
    from peftc.spec.find import find
    from peftc.spec.parse import read_text

    if is_plan(name):
        return read_spec(name)[0].to_yaml()
    return read_text(find(name, Path()))


@app.command("cp", epilog=examples(("peftc specs cp lora my.yaml",)))
@with_common
def cp(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to copy it to.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Copy a spec, to change it, and beside it the schema from which editors complete it."""
    from peftc.ground.output.text import write_text
    from peftc.spec.json_schema import schema_path

    schema, remark = schema_beside(file)
    write_text(file, with_modeline(as_written(name), schema), force=force, inputs=(name,))
    if schema is not None and not schema.exists():
        write_text(schema, schema_path().read_text(encoding="utf-8"))
    if json:
        emit({"ok": True, "out": str(file), "schema": str(schema) if schema else None})
        return
    say(f"wrote {file}" + (f", and {schema.name} for editors" if schema else ""))
    if remark:
        note(remark)
    hint(f"Next:  {command('check', file)}")


def schema_beside(file: Path) -> tuple[Path | None, str]:
    """Where the schema of a spec lies, or None where another file has that name; and a remark."""
    from peftc.ground.reading import first_bytes
    from peftc.spec.json_schema import FILE, IDENTITY, schema_path

    path, installed = file.parent / FILE, schema_path().read_bytes()
    if not os.path.lexists(path):
        return path, ""
    try:
        found = data.loads(first_bytes(path, 8 * len(installed)))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("$id") != IDENTITY:
        return None, f"{path} is no schema of peftc, so editors have none for this spec"
    if found == data.loads(installed):
        return path, ""
    renew = command("schema", "-o", path, "--force")
    return path, f"{path} is of another version of peftc; to renew it:  {renew}"


def with_modeline(text: str, schema: Path | None) -> str:
    """A spec's text, its first line naming the schema beside it."""
    from peftc.spec.json_schema import MODELINE

    if text.startswith(MODELINE):
        text = text.partition("\n")[2]
    return text if schema is None else f"{MODELINE}{schema.name}\n{text}"


@app.command("diff", epilog=examples(("peftc specs diff lora my.yaml",)))
@with_common
def diff(a: Left, b: Right, anywhere: Anywhere = False, json: Json = False) -> None:
    """Compare two specs, both expanded."""
    texts = [read_spec(n, anywhere=anywhere)[0].to_yaml().splitlines(keepends=True) for n in (a, b)]
    lines = list(difflib.unified_diff(*texts, fromfile=a, tofile=b))
    if json:
        emit({"same": not lines, "difference": [line.rstrip("\n") for line in lines]})
    else:
        sys.stdout.writelines(lines)
