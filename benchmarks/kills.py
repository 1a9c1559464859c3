"""Commands that write, killed at random points or two at once: nothing is lost, nothing is left.

    python benchmarks/kills.py                         # 20 pairs of writers, 60 kills of each
    python benchmarks/kills.py apply train --kills 8
    python benchmarks/kills.py --two-steps             # where names cannot be exchanged in one step

Half of the kills come just before a random one of the files' changes (as Python's audit events
tell them), half at a random time. Every second one has an older output to replace. After each:
what was there before is there, byte for byte; the output is the old one, whole, or the new one,
whole; an unfinished run resumes to the tensors of one that nobody killed; and once another command
has claimed the output, nothing is left that `ls -a` shows. Commands run in children of one
process that has imported everything and traced the model, a BERT of two layers: most of a
command's time goes to that, in which nothing is written.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftc.ground.files import check_intact, read_facts, sha256
from peftc.ground.output.claim import claimed
from peftc.ground.output.guard import EXPORT, LOCK, RUN

FORMATS = ("onnx", "torchscript", "aoti", "hf", "peft")
CHANGES = {
    "open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.chmod",
    "os.scandir", "os.truncate", "shutil.rmtree",
}  # fmt: skip
WORDS = ("the", "cat", "sat", "on", "a", "red", "mat")
STEPS = ("--steps", "6", "--every", "2", "--batch", "4", "--length", "12")
TENSORS = "peft.safetensors"


def changes(folder: Path, work: Callable[[], object], last: int = 0, after: float = 0.0) -> int:
    """Run `work` in a child; how many changes of files in `folder` it came to.

    The child is killed just before change number `last`, or `after` so many seconds.
    """
    count = mmap.mmap(-1, 8)
    prefix = os.fsencode(folder.resolve())
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            silence()

            def seen(event: str, given: tuple[Any, ...]) -> None:
                path = given[0] if event in CHANGES else None
                if not isinstance(path, str | bytes | os.PathLike):
                    return
                if os.fsencode(os.path.abspath(path)).startswith(prefix):
                    number = int.from_bytes(count[:], "little") + 1
                    count[:] = number.to_bytes(8, "little")
                    if number == last:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(seen)
            work()
        finally:
            os._exit(0)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it had started itself
    return int.from_bytes(count[:], "little")


def trace_once() -> None:
    """Have the model traced once, here: children get copies of the graph."""
    import peftc.api
    from peftc.capture import capture
    from peftc.capture.fake import has_numbers

    traced: dict[tuple[Any, ...], Any] = {}

    def copied(model: Any, *, static_length: int | None = None) -> Any:
        real = has_numbers(next(model.parameters()))
        known = (type(model).__name__, model.num_labels, real, static_length)
        if known not in traced:
            traced[known] = capture(model, static_length=static_length)
        program = traced[known].clone()
        program.signature = replace(program.signature, config=model.config)
        return program

    peftc.rewrite.apply.capture = copied


def silence() -> None:
    """Let this process print nothing."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def command(folder: Path, *argv: str) -> Callable[[], object]:
    """A command line of peftc, to be run in `folder`."""

    def work() -> int:
        from peftc.cli.main import run

        os.chdir(folder)
        return run(list(argv))

    return work


def inside(work: Callable[[], object]) -> int:
    """Run a command in a child that nobody kills; its exit code."""
    return code_of(begun(work))


def begun(work: Callable[[], object]) -> int:
    """The process of a child that runs a command."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silence()
            code = int(str(work() or 0))
        finally:
            os._exit(code)
    return child


def code_of(child: int) -> int:
    """How a child ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make_start(folder: Path) -> None:
    """What the commands read: a model, an artifact, a checkpoint of HF PEFT, rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = folder.resolve()
    folder.mkdir()
    config = BertConfig(
        vocab_size=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=48, num_labels=2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    words = {w: k for k, w in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder / "model")
    rows = (
        f'{{"text": "{" ".join(WORDS[k % 3 : 3 + k % 5])}", "label": {k % 2}}}\n' for k in range(12)
    )
    (folder / "rows.jsonl").write_text("".join(rows))
    for work in (
        command(folder, "apply", "lora", "model", "-o", "artifact"),
        command(folder, "export", "artifact", "--to", "peft", "-o", "checkpoint"),
        command(folder, *argv_of("onnx")),  # what loads weights of its own, and what does not
    ):
        if work() != 0:
            raise SystemExit("the commands do not run at all")
    (folder / "checkpoint" / EXPORT).unlink()
    shutil.rmtree(folder / "out")


def argv_of(name: str) -> tuple[str, ...]:
    """The command line of a case, which writes to ./out, but for `train`."""
    if name == "apply":
        return ("apply", "lora", "model", "-o", "out", "--seed", "1")
    if name == "import":
        return ("import", "checkpoint", "--model", "model", "-o", "out")
    if name == "train":
        return ("train", "artifact", "--data", "rows.jsonl", "--eval", "rows.jsonl", *STEPS)
    return ("export", "artifact", "--to", name, "-o", "out", "--no-verify")


def tree(folder: Path, leave: Path | None = None) -> dict[str, str]:
    """Every file in a folder by its hash, hidden ones and those in `leave` left out."""
    return {
        str(p.relative_to(folder)): sha256(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p != leave and (leave is None or leave not in p.parents)
        and not any(part.startswith(".peftc-") for part in p.relative_to(folder).parts)
    }  # fmt: skip


def hidden(folder: Path) -> list[Path]:
    """What is left behind under names that `ls` does not show."""
    return [p for p in folder.rglob(".*") if p.name.startswith(".")]


def whole(folder: Path) -> bool:
    """Whether a folder is an artifact or an export with every file as its facts say."""
    try:
        if (folder / LOCK).is_file():
            facts = read_facts(folder / LOCK, "", "")
            check_intact(folder, facts["sha256"], LOCK)
        else:
            facts = read_facts(folder / EXPORT, "", "")
            check_intact(folder, {n: f["sha256"] for n, f in facts["files"].items()}, EXPORT)
    except Exception as cause:
        print(cause)
        return False
    return True


def state_of(out: Path, older: dict[str, str]) -> str:
    """What became of an output: "old", "new", "absent", or what is wrong."""
    if not out.exists():
        return "LOST" if older else "absent"
    if older and tree(out) == older:
        return "old"
    return "new" if whole(out) else "BROKEN"


def runs_of(folder: Path, expected: str) -> str:
    """What became of the run of a killed training; an unfinished one is resumed."""
    runs = [p for p in (folder / "artifact" / "runs").glob("*") if not p.name.startswith(".")]
    if not runs:
        return "absent"
    facts = read_facts(runs[0] / RUN, "run", "")
    state = "new" if facts["finished"] else "resumed"
    if state == "resumed" and inside(command(folder, "train", "artifact", "--resume")) != 0:
        return "BROKEN"
    same = len(runs) == 1 and whole(runs[0]) and sha256(runs[0] / TENSORS) == expected
    return state if same and not list(runs[0].glob("checkpoint-*")) else "LOST"


def kills(name: str, count: int, start: Path, chance: random.Random) -> Iterator[str]:
    """Kill a command `count` times; what became of its output each time."""
    place = start.with_name("work")
    run = place / "artifact" / "runs" / "001"
    out = run if name == "train" else place / "out"
    older_out, sizes = start.with_name(f"older-{name}"), {}

    def fresh(*, older: bool) -> tuple[str, ...]:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(start, place)
        if older and name != "train":
            shutil.copytree(older_out, out)
            return (*argv_of(name), "--force")
        return argv_of(name)

    for older in (False, True):  # not killed: how long it takes, and what it makes
        argv, began = fresh(older=older), time.perf_counter()
        sizes[older] = changes(place, command(place, *argv)), time.perf_counter() - began
        expected = sha256(out / TENSORS) if name == "train" else ""
        if not whole(out) or hidden(place):
            raise SystemExit(f"{name} does not run: {list(out.glob('*'))} {hidden(place)}")
        if not older:
            shutil.rmtree(older_out, ignore_errors=True)
            shutil.copytree(out, older_out)
    for k in range(count):
        older = k % 4 >= 2
        argv = fresh(older=older)
        before, was = tree(place, out), tree(out) if out.exists() else {}
        events, seconds = sizes[older]
        if k % 2:
            changes(place, command(place, *argv), after=chance.uniform(0.02, seconds))
        else:
            changes(place, command(place, *argv), last=chance.randint(1, events))
        left = bool(hidden(place))
        state = runs_of(place, expected) if name == "train" else state_of(out, was)
        with claimed(out):
            pass
        if hidden(place):
            state = "LEFT"
        if tree(place, out) != before:
            state = "CHANGED"
        yield f"{state}{' swept' if left else ''}"


def pairs(count: int, start: Path) -> Iterator[str]:
    """Two commands that write to one output, the second begun ever later; how both ended."""
    place = start.with_name("work")
    argv = (*argv_of("apply"), "--force")

    def alone(seed: str) -> tuple[dict[str, str], float]:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(start, place)
        began = time.perf_counter()
        inside(command(place, *argv, "--seed", seed))
        return tree(place / "out"), time.perf_counter() - began

    (one, seconds), (other, _) = alone("1"), alone("2")
    for k in range(count):
        shutil.rmtree(place)
        shutil.copytree(start, place)
        first = begun(command(place, *argv, "--seed", "1"))
        time.sleep(1.2 * seconds * k / count)
        second = begun(command(place, *argv, "--seed", "2"))
        said = " and ".join("written" if code_of(c) == 0 else "refused" for c in (first, second))
        found = tree(place / "out")
        wrong = found not in (one, other) or hidden(place) or one == other
        yield "MIXED" if wrong else said


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", default=["apply", "train", "import", *FORMATS])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--two-steps", action="store_true")
    given = parser.parse_args()
    if given.two_steps:
        from peftc.ground.output import exchange

        exchange.renameat2 = lambda: None  # type: ignore[assignment]
    import peftc.train.trainer  # noqa: F401 (imported once, for every child)

    trace_once()

    with tempfile.TemporaryDirectory(prefix="peftc-kills-") as scratch:
        start = Path(scratch, "start")
        here = os.getcwd()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch, "inductor"))
        with open(os.devnull, "w") as null:
            sys.stdout, shown = null, sys.stdout
            make_start(start)
            sys.stdout = shown
        os.chdir(here)
        gc.freeze()
        met = Counter(pairs(given.pairs, start))
        print(f"{given.pairs} pairs of writers: " + ", ".join(f"{n} {m}" for m, n in met.items()))
        print(f"{'command':<12} {'kills':>5}   what became of the output")
        for name in given.commands:
            began = time.perf_counter()
            found = Counter(kills(name, given.kills, start, random.Random(given.seed)))
            said = ", ".join(f"{n} {state}" for state, n in sorted(found.items()))
            took = time.perf_counter() - began
            print(f"{name:<12} {given.kills:>5}   {said}   ({took:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
