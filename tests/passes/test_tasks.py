"""Many tasks in one graph: every row as if its task were alone."""

# Specs are plain dicts, and what a graph gives and holds has names that no type knows.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import pytest
import reference
import torch
import zoo
from task_specs import CASES, LORA, PREFIX, SHAPES, TASKS, applied, mixed, prefix, spec
from tolerances import PARITY

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.rewrite import pipeline


@pytest.mark.parametrize(
    ("kind", "case"),
    [("bert", c) for c in CASES]
    + [("gpt2", c) for c in ("lora", "vector")]
    + [("llama", c) for c in ("prefix with an MLP each", "prompt")],
)
def test_each_row_of_a_mixed_batch_equals_its_task_alone(kind, case):
    graph = applied(CASES[case], kind)
    alone = {t: peftc.select_task(graph, t) for t in TASKS}
    for batch, length in SHAPES:
        inputs, ids = mixed(kind, batch, length)
        given = {"task_ids": ids}
        with torch.no_grad():
            got = graph(**inputs, **given)
            for k, (task, one) in enumerate(alone.items()):
                want, named = one(**inputs), graph(**inputs, task=task)
                assert type(want) is type(named)
                for name, value in want.items():
                    rows = ids == k
                    torch.testing.assert_close(
                        got[f"{name}_{task}"][rows], value[rows], **PARITY[value.dtype]
                    )
                    torch.testing.assert_close(named[name], value, **PARITY[value.dtype])
    own = {n.split(".")[-2] for n, _ in alone["qa"].peft_parameters()}
    assert not own & {"ner", "topic"}
    assert [i.name for i in alone["qa"].signature.inputs] == list(inputs)


@pytest.mark.parametrize("case", ["prefix with an MLP each", "bottleneck", "lora", "prompt"])
def test_a_row_gives_no_gradient_to_another_task_s_pieces(case):
    graph = applied(CASES[case])
    inputs, _ = mixed("bert", 2, 6)
    labels = {
        "labels_ner": torch.ones(2, 6, dtype=torch.long),
        "labels_topic": torch.ones(2).long(),
    }
    graph(**inputs, task_ids=torch.tensor([0, 0]), **labels).loss.backward()
    moved = {n: p.grad is not None and bool(p.grad.any()) for n, p in graph.peft_parameters()}
    assert {n for n, m in moved.items() if m and "ner" not in n.split(".")} == set()
    assert all(m for n, m in moved.items() if "ner" in n.split("."))


def test_the_loss_of_a_mixed_batch_is_the_mean_over_rows_of_the_tasks_own():
    graph = applied(PREFIX)
    inputs, ids = mixed("bert", 5, 9)  # tasks 0, 2, 1, 0, 2
    tags = inputs["input_ids"] % 9
    topics, places = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1, 0, 1, 2, 3])
    got = graph(
        **inputs,
        task_ids=ids,
        labels_ner=tags.masked_fill((ids != 0)[:, None], -100),
        labels_topic=topics,
        start_positions_qa=places,
        end_positions_qa=places,
    ).loss
    own = {
        "ner": {"labels": tags},
        "topic": {"labels": topics},
        "qa": {"start_positions": places, "end_positions": places},
    }
    want = 0.0
    for k, (task, labels) in enumerate(own.items()):
        rows = ids == k
        part = {n: v[rows] for n, v in (inputs | labels).items()}
        want += graph(**part, task=task).loss * rows.sum() / 5
    torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_shared_pieces_train_on_every_task_and_need_no_input():
    graph = applied(CASES["one prefix for all"])
    assert [i.name for i in graph.signature.inputs] == list(zoo.inputs(zoo.model("bert")))
    inputs, ids = mixed("bert", 3, 6)
    for task in TASKS:
        graph.zero_grad()
        graph(**inputs, task=task)[0].sum().backward()
        assert all(p.grad.any() for n, p in graph.peft_parameters() if n.startswith("peft.p."))
    labels = {"labels_topic": torch.ones(3).long()}
    assert graph(**inputs, task_ids=ids, **labels).loss > 0


def test_each_task_s_prompt_starts_from_its_own_words_or_labels():
    table = zoo.model("bert").get_input_embeddings().weight
    prompt = {"id": "p", "at": "embed.out", "share": "per_task"}
    prompt["delta"] = {"prompt": {"tokens": 3, "init": {"ids": [9, 8, 7]}}}
    own = {"delta": {"prompt": {"tokens": 3, "init": {"ids": [5, 6]}}}}
    graph = applied(spec({**prompt, "by_task": {"qa": own}}), noise=0)
    for task, ids in (("ner", [9, 8, 7]), ("topic", [9, 8, 7]), ("qa", [5, 6, 5])):
        piece = graph.get_submodule(f"peft.p.embed_out.{task}")
        assert torch.equal(piece.embedding, table[ids]), task
    prompt["delta"] = {"prompt": {"tokens": 3, "init": "labels"}}
    with pytest.raises(PeftcError, match="9 labels need as many `tokens`, there are 3"):
        peftc.plan(spec(prompt), zoo.captured("bert", "base"))
    words = {"ids": [5, 6]}
    graph = applied(spec(prefix(5, init=words, reparam={"hidden": 7})), noise=0)
    single = {**spec(prefix(5, init=words)), "tasks": {}}
    single["insert"][0].pop("share")
    alone = peftc.apply(single, zoo.captured("bert", "base"))
    made = graph.get_submodule("peft.p.reparam.topic")()
    for k, (_, piece) in enumerate(reference.placed(alone, "p")):
        for got, want in zip(made[2 * k : 2 * k + 2], (piece.key, piece.value), strict=True):
            torch.testing.assert_close(got, want, **PARITY[want.dtype])


def test_a_folded_bank_has_no_networks_and_the_same_outputs():
    graph = applied(CASES["prefix with an MLP each"], "llama")
    folded, _ = pipeline.fold(graph)
    names = {n for n, _ in folded.peft_parameters() if not n.startswith("peft.tasks")}
    assert names == {
        f"peft.p.layer{k}_attn_kv.{t}.{x}"
        for k in range(3)
        for t in TASKS
        for x in ("key", "value")
    }
    inputs, ids = mixed("llama", 5, 9)
    with torch.no_grad():
        for name, want in graph(**inputs, task_ids=ids).items():
            got = folded(**inputs, task_ids=ids)[name]
            torch.testing.assert_close(got, want, **PARITY[want.dtype])


def test_a_selected_task_merges_where_a_bank_cannot():
    graph = applied(LORA)
    bank, _ = pipeline.fold(graph)
    one, _ = pipeline.fold(peftc.select_task(graph, "ner"))
    assert len([n for n, _ in bank.peft_parameters() if n.startswith("peft.l.")]) == 6 * 3 * 2
    assert not [n for n, _ in one.peft_parameters() if n.startswith("peft.l.")]
    inputs, _ = mixed("bert", 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            one(**inputs).logits, graph(**inputs, task="ner").logits, rtol=0, atol=1e-4
        )


def test_what_the_passes_change_is_printed():
    written = spec({**prefix(), "layers": [0]}, variables={"t": 4}, qa={"t": 7})
    graph = peftc.apply(written, zoo.captured("gpt2", "base"))
    attends = "aten.scaled_dot_product_attention(%transpose_2, "
    rest = (
        ", %attention_dropout_0, scale=0.408248290463863) : f32[batch, 4, sequence, 6]  @h.0.attn"
    )
    pair = "(f32[batch, 4, sequence + 7, 6], f32[batch, 4, sequence + 7, 6])  @h.0.attn"
    longer = "bool[batch, 1, sequence, sequence + 7]"
    assert {r.name: r.difference for r in graph.meta["peftc.applied"].reports} == {
        "AddTaskIds": ("+%task_ids = input : int64[batch]",),
        "insert peft.p (1 attentions)": (
            f"+%peft_p_mask = peft.p.mask(%task_ids, %expand) : {longer}",
            f"-%scaled_dot_product_attention = {attends}%transpose, %transpose_1, %expand{rest}",
            "+%peft_p_layer0_attn_kv = peft.p.layer0_attn_kv(%task_ids, %transpose, %transpose_1)"
            f" : {pair}",
            "+%getitem_9 = getitem(%peft_p_layer0_attn_kv, 0) : "
            "f32[batch, 4, sequence + 7, 6]  @h.0.attn",
            "+%getitem_10 = getitem(%peft_p_layer0_attn_kv, 1) : "
            "f32[batch, 4, sequence + 7, 6]  @h.0.attn",
            f"+%scaled_dot_product_attention = {attends}%getitem_9, %getitem_10, "
            f"%peft_p_mask{rest}",
        ),
        "shift positions by 4, 4, 7": (
            "-%embedding_1 = aten.embedding(%wpe_weight, %unsqueeze) : f32[1, sequence, 24]  @wpe",
            "+%peft_p_shift = peft.p.shift(%task_ids, %unsqueeze) : int64[batch, sequence]",
            "+%embedding_1 = aten.embedding(%wpe_weight, %peft_p_shift) : "
            "f32[batch, sequence, 24]  @wpe",
        ),
        "add heads: ner, topic, qa": (
            "-return [%view_35]",
            "+%peft_tasks_ner = peft.tasks.ner(%view_35) : f32[batch, sequence, 9]",
            "+%peft_tasks_topic = peft.tasks.topic(%view_35, %attention_mask) : f32[batch, 3]",
            "+%peft_tasks_qa = peft.tasks.qa(%view_35) : "
            "(f32[batch, sequence], f32[batch, sequence])",
            "+%getitem_11 = getitem(%peft_tasks_qa, 0) : f32[batch, sequence]",
            "+%getitem_12 = getitem(%peft_tasks_qa, 1) : f32[batch, sequence]",
            "+return [%peft_tasks_ner, %peft_tasks_topic, %getitem_11, %getitem_12]",
        ),
    }
    _, (report,) = pipeline.select_task(graph, "qa")
    assert report.name == "select task qa"
    assert report.difference == (
        "-%task_ids = input : int64[batch]",
        "-%peft_p_shift = peft.p.shift(%task_ids, %unsqueeze) : int64[batch, sequence]",
        "-%embedding_1 = aten.embedding(%wpe_weight, %peft_p_shift) : "
        "f32[batch, sequence, 24]  @wpe",
        "+%add_tensor = aten.add.Tensor(%unsqueeze, 7) : int64[1, sequence]",
        "+%embedding_1 = aten.embedding(%wpe_weight, %add_tensor) : f32[1, sequence, 24]  @wpe",
        f"-%peft_p_mask = peft.p.mask(%task_ids, %expand) : {longer}",
        f"+%constant_pad_nd_default = aten.constant_pad_nd(%expand, [7, 0], 1.0) : {longer}",
        "-%peft_p_layer0_attn_kv = peft.p.layer0_attn_kv(%task_ids, %transpose, %transpose_1)"
        f" : {pair}",
        f"+%peft_p_layer0_attn_kv = peft.p.layer0_attn_kv(%transpose, %transpose_1) : {pair}",
        f"-%scaled_dot_product_attention = {attends}%getitem_9, %getitem_10, %peft_p_mask{rest}",
        f"+%scaled_dot_product_attention = {attends}%getitem_9, %getitem_10, "
        f"%constant_pad_nd_default{rest}",
        "-%peft_tasks_ner = peft.tasks.ner(%view_35) : f32[batch, sequence, 9]",
        "-%peft_tasks_topic = peft.tasks.topic(%view_35, %attention_mask) : f32[batch, 3]",
        "-return [%peft_tasks_ner, %peft_tasks_topic, %getitem_11, %getitem_12]",
        "+return [%getitem_11, %getitem_12]",
    )
