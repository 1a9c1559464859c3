"""Fixtures that several folders share: a tiny model on disk, with a tokenizer."""

from __future__ import annotations

import gc

import pytest
import torch.fx.config
import zoo
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "red",
    "blue",
    "good",
    "bad",
    "very",
    "not",
    "is",
    "was",
    "it",
    "and",
    "in",
    "by",
]
# Tracing makes millions of objects that live on; what is imported by now is never garbage.
gc.freeze()
gc.set_threshold(50_000, 20, 20)
# The line of Python that each node came from: a sixth of tracing, and nothing here reads it.
torch.fx.config.do_not_emit_stack_traces = True

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny BERT sequence classifier and a word tokenizer, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    zoo.build("bert", "sequence-classification").save_pretrained(folder)
    vocabulary = {w: k for k, w in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def captures_once(monkeypatch):
    """For tests of what stands behind capture: equal models are captured once in a session."""
    monkeypatch.setattr("peftc.rewrite.apply.capture", zoo.captured_once)
