"""The longest text that position tables leave: exact on either side, said and kept everywhere."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import zoo
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
)

import peftc
from peftc.backends.cases import longest
from peftc.capture import capture
from peftc.cli.main import run
from peftc.dataflow import find_sites
from peftc.dataflow.limits import most_tokens
from peftc.ground.diagnostics import PeftcError

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
MOST = 20  # tokens that each of the plain models reads
FAMILIES = {
    "bert": lambda: BertModel(BertConfig(**SIZES, intermediate_size=40,
                                         max_position_embeddings=MOST)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, intermediate_size=40, pad_token_id=1,
                                                  max_position_embeddings=MOST + 2)),
    "gpt2": lambda: GPT2Model(GPT2Config(n_embd=24, n_layer=1, n_head=4, vocab_size=50,
                                         n_positions=MOST)),
    "opt": lambda: OPTModel(OPTConfig(**SIZES, ffn_dim=40, word_embed_proj_dim=24,
                                      max_position_embeddings=MOST)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(
        d_model=24, vocab_size=50, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=40,
        decoder_ffn_dim=44, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=MOST)),
}  # fmt: skip


@functools.cache
def captured(kind):
    torch.manual_seed(0)
    return capture(FAMILIES[kind]().eval())


def prompt(tokens, **more):
    return {"at": "embed.out", "delta": {"prompt": {"tokens": tokens}}, **more}


def prefix(tokens, stack="any", **options):
    return {"at": "attn.kv", "stack": stack, "delta": {"prefix": {"tokens": tokens, **options}}}


def spec(*insert):
    return {"peftc": 1, "name": "s", "insert": [{"id": f"i{k}", **i} for k, i in enumerate(insert)]}


def ids(length, batch=2):
    return torch.arange(batch * length).reshape(batch, length) % 40 + 5


def one_more(name, value):
    """An input with one more token, which is no padding."""
    return torch.nn.functional.pad(
        value, (0, 1), value=7 if name.endswith("input_ids") else 0 if "type" in name else 1
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_longest_text_is_the_last_that_the_graph_can_read(kind):
    """One more token finds no row; on the plain model, behind prompts, and behind prefixes."""
    program = captured(kind)
    assert set(most_tokens(find_sites(program)).values()) == {MOST}
    both = {} if kind != "bart" else {"decoder_input_ids": ids(4)}
    for insert, left in (
        ((prompt(3), prompt(2)), MOST - 5),
        ((prefix(4, "encoder" if both else "any"), prompt(3)), MOST - 7),
        ((prefix(4, positions="keep"),), MOST),
    ):
        planned = peftc.plan(spec(*insert), program).longest
        graph = peftc.apply(spec(*insert), program)
        assert graph.signature.longest == planned
        assert planned["sequence"] == left
        assert planned.get("decoder_sequence", MOST) == MOST
        with torch.no_grad():
            graph(input_ids=ids(left), **both)
            with pytest.raises(PeftcError, match=rf"E122.*{left + 1} tokens.*for {left}\b"):
                graph(input_ids=ids(left + 1), **both)
            given = graph.signature.bind({"input_ids": ids(left), **both})
            longer = [one_more(i.name, t) if t.shape[1] == left else t
                      for i, t in zip(graph.signature.inputs, given, strict=True)]  # fmt: skip
            with pytest.raises((IndexError, RuntimeError)):
                graph.flat(*longer)
        assert longest(graph) == left


def test_each_stack_has_a_limit_of_its_own():
    one = spec(prefix(4, "decoder"), prompt(3, stack="decoder"), prompt(2, stack="encoder"))
    graph = peftc.apply(one, captured("bart"))
    assert graph.signature.longest == {"sequence": MOST - 2, "decoder_sequence": MOST - 7}
    with pytest.raises(PeftcError, match=r"E122.*the decoder's text has 14 tokens.*for 13"):
        graph(input_ids=ids(18), decoder_input_ids=ids(14))


def test_a_model_that_computes_its_positions_has_no_limit():
    for kind, task in (("llama", "causal-lm"), ("t5", "seq2seq-lm")):
        plan = peftc.plan(spec(prompt(3), prefix(4)), zoo.captured(kind, task))
        assert plan.longest == {}


def test_a_plan_without_weights_says_the_same(tmp_path):
    FAMILIES["roberta"]().save_pretrained(tmp_path)
    assert peftc.plan(spec(prompt(3)), tmp_path).longest == {"sequence": MOST - 3}


def test_plan_apply_train_and_export_keep_to_it(model_folder, tmp_path, capsys, captures_once):
    """Rows longer than the text that is left are cut, and both files say how long that is."""
    made, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    text = " ".join(["good cat sat"] * 40)
    rows.write_text(
        "".join(json.dumps({"text": text, "label": f"LABEL_{k % 5}"}) + "\n" for k in range(4))
    )
    one = tmp_path / "one.yaml"
    one.write_text(json.dumps(spec(prompt(6), prefix(4))))
    assert run(["plan", str(one), str(model_folder)]) == 0
    line = "Longest text: 54 tokens, behind 10 inserted."
    assert line in capsys.readouterr().out
    assert run(["apply", str(one), str(model_folder), "-o", str(made)]) == 0
    assert line in capsys.readouterr().out
    assert run(["train", str(made), "--data", str(rows), "--eval", str(rows), "--steps", "1",
                "--batch", "2"]) == 0  # fmt: skip
    assert "texts are cut at 54 tokens" in " ".join(capsys.readouterr().err.split())
    graph = peftc.load(made / "runs" / "001")
    assert graph.signature.longest == {"sequence": 54}
    peftc.export(graph, "torchscript", tmp_path / "file")
    facts = json.loads((tmp_path / "file" / "peftc.export.json").read_text())
    assert facts["longest"] == {"sequence": 54}
    assert peftc.verify(graph, tmp_path / "file").ok
