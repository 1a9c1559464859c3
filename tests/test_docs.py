"""Every command, spec, snippet and shown output of README and docs, as written and in order.

On two shapes of real models, each with a tokenizer that was trained on text: an encoder of four
layers, and a decoder whose heads share keys and values. Neither has what a toy has by chance.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from cli.test_said_commands import understood
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import peftc
from peftc.cli.main import run
from peftc.ground.diagnostics import PeftcError

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?m)(?:`(?P<file>\S+)`:\n\n)?^```(?P<kind>\w+)\n(?P<fenced>(?:.*\n)*?)```$"
    r"|(?P<indented>(?:^ {4}\S.*\n(?:(?: {4}.*)?\n)*)+)"
)
SHAPES = ["bert", "llama"]
# What the machine of a test may lack, and what takes minutes: only read, in test_said_commands.
ELSEWHERE = re.compile(r"--to aoti|--device cuda|^pip |peftc demo|run_aoti|CUDAExecution")


@functools.cache
def texts() -> list[dict[str, Any]]:
    """The sentences of the demo."""
    data = Path(str(files("peftc.cli.demo"))) / "train.jsonl"
    return [json.loads(line) for line in data.read_text().splitlines()]


def save_bert(folder: Path) -> None:
    """An encoder as it lies on the hub: pretrained, without the head of any task."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        (r["text"] for r in texts()), WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    save(folder, tokenizer, {f"{n}_token": t for n, t in names.items()})
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=48, num_hidden_layers=4,
        num_attention_heads=4, intermediate_size=112, max_position_embeddings=160,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)


def save_llama(folder: Path) -> None:
    """A decoder with grouped heads and bytes for a vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        (r["text"] for r in texts()),
        BpeTrainer(
            vocab_size=420, special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    save(folder, tokenizer, {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=48, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=8, intermediate_size=88,
        max_position_embeddings=160, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def save(folder: Path, tokenizer: Tokenizer, names: dict[str, str]) -> None:
    """Write a tokenizer; weights are drawn from the same seed every time."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)


@pytest.fixture(params=SHAPES)
def place(request, tmp_path, monkeypatch, captures_once):
    """A working folder with a real model in ./model and rows of two labels."""
    {"bert": save_bert, "llama": save_llama}[request.param](tmp_path / "model")
    for name, rows in (("train", texts()[:64]), ("dev", texts()[64:80])):
        label = {"past": "neg", "future": "pos"}
        lines = [json.dumps({"text": r["text"], "label": label[r["label"]]}) for r in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(name of a file or "", kind, text) of every block of a page, in their order."""
    found = []
    for m in BLOCK.finditer((ROOT / page).read_text()):
        text = m["fenced"] or textwrap.dedent(m["indented"] or "").strip() + "\n"
        said = re.match(r"(\$ )?(peftc|pip) ", text)
        found.append((m["file"] or "", m["kind"] or ("console" if said else "python"), text))
    return found


class Reader:
    """Somebody who types what a page says."""

    def __init__(self, capsys: Any, **names: str) -> None:
        self.capsys, self.names = capsys, names
        self.ids = torch.tensor([[12, 30, 45, 7, 9], [8, 21, 0, 0, 0]])
        self.known: dict[str, Any] = {"ids": self.ids.numpy(), "Path": Path}
        self.known["mask"] = (self.known["ids"] > 0).astype("int64")
        self.commands = 0

    def run(self, line: str, code: int = 0) -> tuple[str, str]:
        """A command, and what it said."""
        for name, value in self.names.items():
            line = line.replace(name, value)
        words = shlex.split(line.removeprefix("$ "), comments=True)
        assert words[0] == "peftc", line
        found = run(words[1:])
        said = self.capsys.readouterr()
        assert found == code, (line, said.err)
        self.commands += 1
        return said.out, said.err

    def follow(self, out: str) -> list[str]:
        """The commands that a command said come next, each understood."""
        said = [w for line in re.findall(r"(?m)(?:Next|go on):  (.*)$", out)
                for w in line.split("   or   ")]  # fmt: skip
        for line in said:
            understood(shlex.split(line)[1:])
        return said

    def take(self, file: str, kind: str, text: str) -> None:
        """A block: a file to write, commands to run, or Python."""
        if kind == "json":
            Path(file).write_text(text)
        elif kind == "yaml":
            name = file or re.match(r"# (\S+\.yaml)\n", text)[1]
            Path(name).write_text(text)
            self.run(f"peftc check {name}")
            self.run(f"peftc plan {name} ./model")
        elif kind == "python":
            exec(text, self.known)
        else:
            for line in text.splitlines():
                if not ELSEWHERE.search(line):
                    out, _ = self.run(line)
                    self.follow(out)


def test_the_readme(place, capsys, monkeypatch):
    reader = Reader(capsys, MODEL="./model", CHECKPOINT="checkpoint")
    found = [b for b in blocks("README.md") if not ELSEWHERE.search(b[2].splitlines()[0])]
    (_, _, use), (_, _, snippet), (_, _, spec), (_, _, mistake) = found
    for line in use.splitlines():
        if "CHECKPOINT" in line:
            reader.run("peftc export out/runs/001 --to peft -o checkpoint --no-verify")
        reader.follow(reader.run(line)[0])
    assert reader.commands == 12
    model = AutoModelForSequenceClassification.from_pretrained("model", num_labels=3).eval()
    reader.known |= {"model": model, "ids": reader.ids, "mask": (reader.ids > 0).long()}
    exec(snippet, reader.known)
    assert float(capsys.readouterr().out) < 1e-4
    Path("mine.yaml").write_text(spec)
    reader.run("peftc plan mine.yaml MODEL")
    Path("mine.yaml").write_text(spec.replace("dim: 48", "dmi: 48"))
    line, _, shown = mistake.partition("\n")
    assert reader.run(line, code=2)[1].startswith(shown.rstrip())
    ctrl_c_and_on(reader, monkeypatch)


def ctrl_c_and_on(reader, monkeypatch):
    """`--resume` as the README has it, and as what was interrupted says."""
    from peftc.train import run as of_runs

    note, folders = of_runs.note_event, []

    def stop(run, **event):
        note(run, **event)
        if event["event"] == "eval" and run not in folders:
            folders.append(run)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(of_runs, "note_event", stop)
    out, _ = reader.run("peftc train out --data train.jsonl --eval dev.jsonl --every 2", 130)
    (run,) = folders
    assert reader.follow(out) == [f"peftc train {run} --resume"]
    out, _ = reader.run("peftc train out --resume")
    assert reader.follow(out) == [f"peftc export {run} --to onnx"]


def test_writing_a_spec(place, capsys):
    reader = Reader(capsys)
    for block in blocks("docs/writing-a-spec.md"):
        reader.take(*block)
    assert reader.commands > 30
    assert Path("plan.html").is_file()
    assert Path("out/onnx/model.onnx").is_file()
    assert reader.known["tags"].shape == (5, 5)
    assert reader.known["topic"].shape == (2,)


@pytest.mark.parametrize("place", ["llama"], indirect=True)
def test_deploying(place, capsys):
    reader = Reader(capsys)
    reader.run("peftc apply lora ./model -o out --task sequence-classification --labels neg,pos")
    for block in blocks("docs/deploying.md"):
        if not ELSEWHERE.search(block[2]):
            reader.take(*block)
    assert reader.known["logits"].shape == (2, 2)
    table = re.findall(r"(?m)^\| `(\S+)` \|", (ROOT / "docs/deploying.md").read_text())
    assert set(table) == {p.name for p in Path("out/onnx").iterdir()}
    assert Path("repository/reviews/config.pbtxt").is_file()


@pytest.mark.parametrize("kind", ["gpt2", "t5", "llama", "bert"])
def test_its_specs_fit_other_families(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = 0
    for file, _, text in (b for b in blocks("docs/writing-a-spec.md") if b[1] == "yaml"):
        name = file or re.match(r"# (\S+\.yaml)\n", text)[1]
        Path(name).write_text(text)
        if kind == "t5" and "\ntasks:" in text:
            with pytest.raises(PeftcError, match="needs an encoder or a decoder"):
                peftc.plan(name, zoo.captured(kind))
            continue
        assert peftc.plan(name, zoo.captured(kind)).inserted > 0
        several += 1
    assert several >= 6
