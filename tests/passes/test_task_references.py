"""Rows of many tasks against references without peftc: PEFT, forward hooks, attention by hand."""

# Specs are plain dicts, and what a graph gives and holds has names that no type knows.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import copy

import pytest
import reference
import torch
import zoo
from peft import PrefixTuningConfig, get_peft_model
from task_specs import CASES, KINDS, PREFIX, SHAPES, TASKS, applied, mixed, prefix
from tolerances import PARITY
from torch.nn.functional import linear

import peftc


def heads_by_hand(graph, task, states, pooled):
    """A task's outputs from the base's own, by plain linear layers."""
    head = graph.get_submodule(f"peft.tasks.{task}.linear")
    scores = linear(pooled if task == "topic" else states, head.weight, head.bias)
    if task == "qa":
        return {"start_logits_qa": scores[..., 0], "end_logits_qa": scores[..., 1]}
    return {f"logits_{task}": scores}


def last_real(states, mask):
    """Each row's last real token, by counting."""
    return torch.stack([row[int(m.sum()) - 1] for row, m in zip(states, mask, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 3])
def test_prefixes_of_different_lengths_equal_peft_s_with_the_same_weights(kind, shared):
    """PEFT's prefix tuning on the plain model, once for each task; heads by hand."""
    common = {**prefix(shared), "id": "s", "share": "all_tasks"}
    graph = applied({**PREFIX, "insert": [*PREFIX["insert"], common][: 1 + bool(shared)]}, kind)
    model = zoo.model(kind)
    for batch, length in SHAPES:
        inputs, ids = mixed(kind, batch, length)
        inputs.pop("token_type_ids", None)  # PEFT leaves them out
        with torch.no_grad():
            got = graph(**inputs, task_ids=ids)
        for k, (task, tokens) in enumerate({"ner": 2, "topic": 4, "qa": 7}.items()):
            config = PrefixTuningConfig(
                task_type="FEATURE_EXTRACTION", num_virtual_tokens=shared + tokens,
                inference_mode=False,
            )  # fmt: skip
            theirs = get_peft_model(copy.deepcopy(model), config).eval()
            layers = [[p.of(task)] for _, p in reference.placed(graph, "p")]
            if shared:
                common = [p for _, p in reference.placed(graph, "s")]
                layers = [[*layer, p] for layer, p in zip(layers, common, strict=True)]
            pairs = [[torch.cat([getattr(p, n) for p in layer], 1) for n in ("key", "value")]
                     for layer in layers]  # fmt: skip
            parts = [t.transpose(0, 1).flatten(1) for pair in pairs for t in pair]
            table = theirs.prompt_encoder["default"].embedding.weight
            assert table.shape == (shared + tokens, sum(p.shape[1] for p in parts))
            table.data.copy_(torch.cat(parts, 1))
            with torch.no_grad():
                base = theirs(**inputs)
                plain = model(**inputs)
            mask = inputs["attention_mask"]
            states = base.last_hidden_state
            pooled = base.pooler_output if kind == "bert" else last_real(states, mask)
            for name, want in heads_by_hand(graph, task, states, pooled).items():
                real = ids == k if task == "topic" else mask * (ids == k)[:, None]
                torch.testing.assert_close(
                    zoo.real_rows(got[name], real), zoo.real_rows(want, real), **PARITY[want.dtype]
                )
            assert (states - plain.last_hidden_state).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["lora", "bottleneck"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_pieces_of_different_sizes_equal_forward_hooks(kind, case):
    graph, model = applied(CASES[case], kind), zoo.model(kind)
    for batch, length in SHAPES:
        inputs, ids = mixed(kind, batch, length)
        with torch.no_grad():
            got = graph(**inputs, task_ids=ids)
        for k, task in enumerate(TASKS):
            changes = []
            for site, bank in reference.placed(graph, CASES[case]["insert"][0]["id"]):
                changes.append((site, by_hand(case, task, bank.of(task))))
            with torch.no_grad(), reference.changed(model, kind, changes):
                base = model(**inputs, use_cache=False)
            states, rows = base.last_hidden_state, ids == k
            pooled = (
                base.pooler_output
                if kind == "bert"
                else last_real(states, inputs["attention_mask"])
            )
            for name, want in heads_by_hand(graph, task, states, pooled).items():
                torch.testing.assert_close(got[name][rows], want[rows], **PARITY[want.dtype])


def by_hand(case, task, piece):
    """The change of one site, written out."""
    if case == "lora":
        scale = 3.0 if task == "ner" else 1.5
        return lambda x, h: h + scale * (x @ piece.A.T) @ piece.B.T

    def bottleneck(x, h):
        centred = h - h.mean(-1, keepdim=True)
        normed = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        normed = normed * piece.before.weight + piece.before.bias
        down = torch.sigmoid(normed @ piece.down.weight.T + piece.down.bias)
        return h + down @ piece.up.weight.T + piece.up.bias

    return bottleneck


def test_attention_that_is_written_out_hides_what_a_shorter_prefix_lacks():
    model = zoo.build("gpt2")
    model.set_attn_implementation("eager")
    inputs, ids = mixed("gpt2", 5, 9)
    graphs = []
    for program in (zoo.captured_once(model), zoo.captured("gpt2", "base")):
        graph = peftc.apply(PREFIX, program)
        reference.randomise(graph)
        graphs.append(graph)
    real = inputs["attention_mask"]
    with torch.no_grad():
        eager, sdpa = (g(**inputs, task_ids=ids) for g in graphs)
        alone = peftc.select_task(graphs[0], "ner")(**inputs)
    for got, want in ((eager.logits_ner, sdpa.logits_ner), (alone.logits, eager.logits_ner)):
        rows = ids == 0
        torch.testing.assert_close(
            zoo.real_rows(got, real)[rows], zoo.real_rows(want, real)[rows], **PARITY[got.dtype]
        )
