"""`peftc import`: a checkpoint of another library as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftc.cli.console import emit, hint, progress, say
from peftc.cli.next_step import command, flags
from peftc.cli.options import Attn, Dtype, Force, Json, Labels, Task, Trust, open_model

ORDER = 9
EXAMPLES = (
    "peftc import lora-checkpoint --model bert-base-uncased -o out",
    "peftc export out --to peft",
)


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of HF PEFT or of `adapters`.")
    ],
    *,
    model: Annotated[
        str | None, typer.Option(help="The base: a folder or a hub name; as the checkpoint says.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="The artifact folder to write.")
    ],
    task: Task = None,
    labels: Labels = None,
    dtype: Dtype = None,
    attn: Attn = None,
    trust: Trust = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a checkpoint of HF PEFT or `adapters` into a spec and an artifact."""
    from peftc.cli.claim import claim
    from peftc.ground.diagnostics import error
    from peftc.interop.importing import opened

    claim(out, force=force, inputs=(checkpoint, model))
    read = opened(checkpoint)
    model = model or read.config.get("base_model_name_or_path")
    if not model:
        raise error(
            "E008",
            f"{checkpoint} does not name its base model",
            help=(command("import", checkpoint, "--model", "MODEL", "-o", out),),
        )
    import peftc
    from peftc.interop.importing import import_checkpoint, summary
    from peftc.interop.model import head_options
    from peftc.rewrite.applied import APPLIED

    options: dict[str, Any] = {"task": task, "labels": labels}
    options = head_options(read, model, options)
    with progress(f"loading {model}"):
        loaded = open_model(model, dtype=dtype, attn=attn, trust=trust, **options)
    with progress("capturing and rewriting"):
        graph = import_checkpoint(read, loaded)
    applied = graph.meta[APPLIED]
    applied.reference = model
    peftc.save(graph, out, force=force)
    facts = summary(graph)
    if json:
        emit({"ok": True, "out": str(out), **facts, "plan": applied.plan})
        return
    say(f"read   {checkpoint}  {facts['method']}, on {type(loaded).__name__}")
    say(
        f"load   {facts['tensors']} of {facts['tensors']} tensors: {facts['places']} places, "
        f"{facts['base']} parameters of the model itself"
    )
    equals = f"   equals the shipped spec {facts['equals']}" if facts["equals"] else ""
    say(f"wrote  {out / 'spec.yaml'}{equals}")
    given = flags({"--trust-remote-code": trust})
    ways = [command("export", out, "--to", kind, *given) for kind in ("onnx", "peft")]
    hint(f"Next:  {'   or   '.join(ways if writable(graph) else ways[:1])}")


def writable(graph: Any) -> bool:
    """Whether HF PEFT has a form of what was imported."""
    from peftc.ground.diagnostics import PeftcError
    from peftc.interop.to_peft import inserted, writer_for

    try:
        writer_for(inserted(graph))
    except PeftcError:
        return False
    return True
