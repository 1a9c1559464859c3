"""E3xx: artifacts, plans and exports on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import zoo
from messages.cases import Here, case
from safetensors.torch import load_file, save_file
from sealing import reseal

import peftc
from peftc.artifact.lock import LOCK, SPEC, TENSORS
from peftc.capture import capture
from peftc.capture.fake import without_weights
from peftc.capture.stored import own_copy
from peftc.ground.output.claim import lock_of
from peftc.ground.output.hold import hold
from peftc.ground.output.recover import MARKER
from peftc.interop.importing import opened
from peftc.planning.file import check_plan


@case("E301", "another base model")
def _(here: Here):
    peftc.load(here.artifact(), zoo.build(*here.family, seed=1))


@case("E301", "a graph that has changed")
def _(here: Here):
    folder = here.artifact()
    versions = {"peftc": "0.1.0", "transformers": "5.0.0"}
    reseal(folder, lambda lock: lock.update(graph_sha256="0" * 64, versions=versions))
    peftc.load(folder, here.program)


@case("E301", "a base that computes other positions")
def _(here: Here):
    llama = zoo.build("llama", "sequence-classification")
    folder = peftc.save(peftc.apply("lora", llama), Path("out"))
    llama.model.rotary_emb.inv_freq.mul_(0.5)
    peftc.load(folder, llama)


@case("E301", "a stale plan")
def _(here: Here):
    here.run("plan", "lora", "model", "-o", "plan.json")
    data = json.loads(Path("plan.json").read_text())
    now = peftc.plan("lora", zoo.captured("bert", "base"))
    check_plan(data, now.to_json(), now.sites.program.signature.config, "plan.json")


@case("E302", "tensors of another graph")
def _(here: Here):
    folder = here.artifact()
    tensors = load_file(folder / TENSORS)
    save_file({n.replace("attn_q", "attn_k"): t for n, t in tensors.items()}, folder / TENSORS)
    reseal(folder)
    peftc.load(folder, here.program)


@case("E303", "a file that is damaged")
def _(here: Here):
    folder = here.artifact()
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[: len(data) // 2])
    peftc.load(folder, here.program)


@case("E303", "a file that is missing")
def _(here: Here):
    folder = here.artifact()
    (folder / TENSORS).unlink()
    peftc.load(folder, here.program)


@case("E303", "a lock that is no JSON")
def _(here: Here):
    folder = here.artifact()
    (folder / LOCK).write_text((folder / LOCK).read_text()[:100])
    peftc.load(folder, here.program)


@case("E303", "a lock with other values than a lock has")
def _(here: Here):
    folder = here.artifact()

    def damage(lock):
        lock["model"] |= {"dtype": "float31", "static_length": "8"}
        del lock["seed"]

    reseal(folder, damage)
    peftc.load(folder, here.program)


@case("E303", "a run with other values than a run has")
def _(here: Here):
    here.artifact()
    Path("out/runs/001").mkdir(parents=True)
    facts = {"format_version": "1.0", "finished": "no", "files": {}, "settings": {"batch": []}}
    Path("out/runs/001/run.json").write_text(json.dumps(facts))
    here.run("train", "out", "--resume")


@case("E303", "tensors that are none")
def _(here: Here):
    folder = here.artifact()
    (folder / TENSORS).write_bytes(b"none")
    reseal(folder)
    peftc.load(folder, here.program)


@case("E304", "a file that is no plan")
def _(here: Here):
    here.write("{}", "plan.json")
    here.run("apply", "plan.json", "model", "-o", "out")


@case("E305", "nothing to resume")
def _(here: Here):
    here.artifact()
    here.run("train", "out", "--resume")


@case("E305", "a run whose rows have changed")
def _(here: Here):
    from peftc.train.run import start_run, unfinished
    from peftc.train.settings import Settings

    rows = here.write('{"text": "a", "label": "LABEL_0"}\n', "rows.jsonl")
    start_run(Path("out/runs/001"), Path("out"), {"train": [(None, rows)]}, Settings().to_json())
    here.write("", "rows.jsonl")
    unfinished(Path("out"))


@case("E306", "an output folder that has something in it")
def _(here: Here):
    here.artifact()
    here.run("apply", "lora", "model", "-o", "out")


@case("E306", "an artifact with a run in it")
def _(here: Here):
    Path("out/runs/001").mkdir(parents=True)
    Path("out/peftc.lock.json").write_text("{}")
    here.run("apply", "lora", "model", "-o", "out")


@case("E306", "a spec that exists")
def _(here: Here):
    here.write("mine")
    here.run("specs", "cp", "lora", "mine.yaml")


@case("E306", "a plan that exists")
def _(here: Here):
    here.write("{}", "plan.json")
    here.run("plan", "lora", "model", "-o", "plan.json")


@case("E306", "a run that exists")
def _(here: Here):
    here.artifact()
    Path("out/runs/best").mkdir(parents=True)
    here.run("train", "out", "--data", str(here.write("", "rows.jsonl")), "--name", "best")


@case("E307", "a folded graph")
def _(here: Here):
    from peftc.rewrite.pipeline import fold

    peftc.save(fold(peftc.apply("lora", here.program))[0], Path("out"))


@case("E308", "a folder that is no artifact")
def _(here: Here):
    here.run("train", "model", "--data", str(here.write("", "rows.jsonl")))


@case("E308", "an artifact of another format")
def _(here: Here):
    Path("out").mkdir()
    Path("out", LOCK).write_text('{"format_version": "9.0"}')
    peftc.load("out")


@case("E309", "a base that was made in Python")
def _(here: Here):
    peftc.load(here.artifact(reference=None))


@case("E303", "a base whose weights file stopped early")
def _(here: Here):
    here.artifact(reference="cut")
    Path("cut").mkdir()
    Path("cut/config.json").write_bytes(Path("model/config.json").read_bytes())
    Path("cut/model.safetensors").write_bytes(Path("model/model.safetensors").read_bytes()[:9000])
    peftc.load("out", weights=False)


@case("E320", "a lock that was changed")
def _(here: Here):
    folder = here.artifact()
    (folder / LOCK).write_text((folder / LOCK).read_text().replace('"seed": 0', '"seed": 1'))
    peftc.load(folder, here.program)


@case("E321", "a spec that was changed")
def _(here: Here):
    folder = here.artifact("houlsby")
    (folder / SPEC).write_text((folder / SPEC).read_text().replace("act: silu", "act: gelu"))
    peftc.load(folder, here.program)


@case("E322", "tensors that are not as the lock says")
def _(here: Here):
    folder = here.artifact()
    tensors = load_file(folder / TENSORS)
    first, second, third = sorted(tensors)[:3]
    tensors[first] = tensors[first].half()
    tensors[second] = tensors[second][1:].contiguous()
    tensors[third][0] = float("nan")
    save_file(tensors, folder / TENSORS)
    reseal(folder)
    peftc.load(folder, here.program)


@case("E323", "a base that was resized in memory")
def _(here: Here):
    folder = here.artifact()
    resized = {"vocab_size": 107}
    reseal(folder, lambda lock: lock["model"]["config"].update(resized))
    peftc.load(folder)


@case("E315", "numbers of a graph without weights")
def _(here: Here):
    graph = capture(without_weights(lambda: zoo.build(*here.family)))
    own_copy(graph, "bert.embeddings.word_embeddings.weight")


LORA = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["query"]}
A = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


def checkpoint(**options: object) -> None:
    """./checkpoint, a low-rank update of which a half is missing, and these options."""
    Path("checkpoint").mkdir()
    Path("checkpoint/adapter_config.json").write_text(json.dumps(LORA | options))
    save_file({A: torch.ones(3, 24)}, "checkpoint/adapter_model.safetensors")


@case("E310", "a folder that is no checkpoint")
def _(here: Here):
    here.run("import", "model", "--model", "model", "-o", "out")


@case("E311", "a pickle")
def _(here: Here):
    Path("checkpoint").mkdir()
    Path("checkpoint/adapter_config.json").write_text(json.dumps(LORA))
    Path("checkpoint/adapter_model.bin").write_bytes(b"never read")
    here.run("import", "checkpoint", "--model", "model", "-o", "out")


@case("E312", "a method without equivalent")
def _(here: Here):
    checkpoint(peft_type="LOHA")
    opened(Path("checkpoint"))


@case("E312", "weights that the base does not have any more")
def _(here: Here):
    checkpoint(init_lora_weights="pissa")
    opened(Path("checkpoint"))


@case("E313", "half of an update")
def _(here: Here):
    checkpoint()
    peftc.import_checkpoint("checkpoint", zoo.captured("bert"))


@case("E314", "an option that is none")
def _(here: Here):
    checkpoint(rak=8)
    opened(Path("checkpoint"))


@case("E316", "the base model")
def _(here: Here):
    here.run("apply", "lora", "model", "-o", "model", "--force")


@case("E316", "the artifact that is exported")
def _(here: Here):
    here.artifact()
    here.run("export", "out", "--to", "torchscript", "-o", "out", "--force")


@case("E316", "a folder that holds the artifact")
def _(here: Here):
    Path("all").mkdir()
    here.artifact().rename("all/out")
    here.run("export", "all/out", "--to", "torchscript", "-o", "all", "--force")


@case("E316", "a folder in the checkpoint")
def _(here: Here):
    Path("peft").mkdir()
    here.run("import", "peft", "--model", "model", "-o", "peft/out", "--force")


@case("E316", "the spec")
def _(here: Here):
    here.write("peftc: 1\nname: n\n")
    here.run("plan", "mine.yaml", "model", "-o", "mine.yaml", "--force")


@case("E317", "an output that another process writes")
def _(here: Here):
    with written_elsewhere(here, "out"):
        here.run("apply", "lora", "model", "-o", "out")


@case("E317", "a folder in such an output")
def _(here: Here):
    here.artifact()
    with written_elsewhere(here, "out"):
        here.run("export", "out", "--to", "torchscript")


@contextmanager
def written_elsewhere(here: Here, out: str) -> Iterator[None]:
    """As if another process wrote to `out`."""
    held = hold(lock_of(Path(out).absolute()), {})
    os.truncate(lock_of(Path(out).absolute()), 0)  # its number and machine differ each time
    here.monkeypatch.setattr("peftc.ground.output.claim.PATIENCE", 0.0)
    try:
        yield
    finally:
        if held is not None:
            held.release()


@case("E318", "a folder of the user's own")
def _(here: Here):
    for name in ("a.csv", "b.csv", "c.csv", "notes.txt", "photos/summer"):
        Path("mine", name).mkdir(parents=True)
    here.run("apply", "lora", "model", "-o", "mine", "--force")


@case("E318", "a file of the user's own")
def _(here: Here):
    here.write("label,text\n", "rows.csv")
    here.run("plan", "lora", "model", "-o", "rows.csv", "--force")


@case("E319", "a replacement that was interrupted, where the reader may not write")
def _(here: Here):
    room = Path(".peftc-0123456789abcdef")
    for name in ("new", "old"):
        (room / name).mkdir(parents=True)
    (room / MARKER).write_text('{"peftc": "staging", "output": "out"}')

    def refuse(self, target):
        raise OSError(30, "Read-only file system")

    here.monkeypatch.setattr(Path, "rename", refuse)
    here.run("export", "out", "--to", "onnx")
