"""Many tasks in one graph: every row equal to its task alone, and to references without peftc."""

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
from tolerances import PARITY
from torch.nn.functional import linear
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertModel,
)

import peftc
from peftc import pipeline
from peftc.capture import capture
from peftc.diagnostics import PeftcError

TASKS = {
    "ner": {"head": {"token_classification": {"labels": 9}}},
    "topic": {"head": {"sequence_classification": {"labels": ["a", "b", "c"]}}},
    "qa": {"head": "question_answering"},
}
SHAPES = [(5, 9), (2, 6)]
KINDS = ["bert", "gpt2", "llama"]


def spec(*insert, variables=None, **sets):
    """A spec with the three tasks, `sets` being the variables of each."""
    tasks = copy.deepcopy(TASKS)
    for task, own in sets.items():
        tasks[task]["set"] = own
    return {
        "peftc": 1,
        "name": "m",
        "vars": variables or {},
        "tasks": tasks,
        "insert": [{"share": "per_task", **i} for i in insert],
    }


def prefix(tokens="$t", **options):
    return {"id": "p", "at": "attn.kv", "delta": {"prefix": {"tokens": tokens, **options}}}


PREFIX = spec(prefix(), variables={"t": 4}, ner={"t": 2}, qa={"t": 7})
LORA = spec(
    {
        "id": "l",
        "at": ["attn.q", "attn.v"],
        "delta": {"low_rank": {"rank": "$r"}},
        "compose": {"add": {"scale": "6 / $r"}},
    },
    variables={"r": 4},
    ner={"r": 2},
)
BOTTLENECK = spec(
    {
        "id": "b",
        "at": ["attn.out", "ffn.out"],
        "delta": {"bottleneck": {"dim": "$d", "act": "sigmoid", "norm": "before"}},
    },
    variables={"d": 4},
    topic={"d": 3},
)
CASES = {
    "prefix": PREFIX,
    "prefix of one length": spec(prefix(5)),
    "prefix, positions kept": spec(
        prefix(positions="keep"), variables={"t": 4}, ner={"t": 2}
    ),
    "prefix with an MLP each": spec(
        prefix(reparam={"hidden": "$h"}), variables={"t": 4, "h": 7}, ner={"t": 2, "h": 9}
    ),
    "bottleneck": BOTTLENECK,
    "gate": spec(
        {
            "id": "b",
            "at": "ffn.out",
            "delta": {"bottleneck": {"dim": 4, "norm": "after"}},
            "compose": {"gate": {"init": "$g", "per": "channel"}},
        },
        variables={"g": 0.7},
        ner={"g": 0.2},
    ),
    "gates that read": spec(
        {
            "id": "b",
            "at": "ffn.out",
            "delta": {"bottleneck": {"dim": 4}},
            "compose": {"add": {"scale": "$s", "gate": {"reads": "x"}}},
        },
        {**prefix(5), "compose": {"attend": {"gate": {}}}},
        variables={"s": 2},
        ner={"s": 3},
    ),
    "lora": LORA,
    "vector": spec({"id": "v", "at": ["attn.k", "ffn.act"], "delta": "vector"}),
    "prompt": spec({"id": "v", "at": "embed.out", "delta": {"prompt": {"tokens": 3}}}),
    "p-tuning": spec({"id": "v", "use": "ptuning", "set": {"tokens": 3, "hidden": 6}}),
    "one prefix for all": spec({**prefix(5), "share": "all_tasks"}),
}  # fmt: skip


def applied(written, kind="bert", noise=0.3, layers=None):
    graph = peftc.apply(written, zoo.captured(kind, "base", layers))
    reference.randomise(graph, std=noise)
    return graph


def mixed(kind, batch, length):
    """Inputs, and a task for each row: all three in any three rows."""
    inputs = zoo.inputs(zoo.model(kind), batch, length)
    return inputs, (2 * torch.arange(batch)) % 3


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


FACTORIES = {
    "token_classification": AutoModelForTokenClassification,
    "sequence_classification": AutoModelForSequenceClassification,
    "question_answering": AutoModelForQuestionAnswering,
}


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert", h) for h in FACTORIES]
    + [("gpt2", "sequence_classification"), ("llama", "sequence_classification")],
)
def test_one_task_is_transformers_own_model_of_that_task(kind, head):
    """Outputs, loss and gradients of the head, with the same weights and padded rows."""
    labels = {} if head == "question_answering" else {"labels": 5}
    graph = peftc.apply(
        {"peftc": 1, "name": "n", "tasks": {"one": {"head": {head: labels}}}, "insert": []},
        zoo.captured(kind, "base"),
    )
    reference.randomise(graph)
    config = zoo.CONFIGS[kind]()
    config.use_cache, config.num_labels = False, labels.get("labels", 2)
    theirs = FACTORIES[head].from_config(config).eval()
    theirs.base_model.load_state_dict(zoo.model(kind).state_dict(), strict=False)
    name = next(n for n in ("classifier", "qa_outputs", "score") if hasattr(theirs, n))
    ours, their_head = graph.get_submodule("peft.tasks.one.linear"), getattr(theirs, name)
    their_head.weight.data.copy_(ours.weight)
    if their_head.bias is None:
        ours.bias.data.zero_()
    else:
        their_head.bias.data.copy_(ours.bias)
    for batch, length in SHAPES:
        inputs = zoo.inputs(zoo.model(kind), batch, length)
        if kind != "bert":  # theirs finds the last token by the padding's id
            inputs["input_ids"][inputs["attention_mask"] == 0] = 0
        ones = torch.arange(batch) % 5
        answer = {
            "token_classification": {"labels": inputs["input_ids"] % 5},
            "sequence_classification": {"labels": ones},
            "question_answering": {"start_positions": ones, "end_positions": ones + 1},
        }[head]
        theirs.zero_grad()
        graph.zero_grad()
        want, got = theirs(**inputs, **answer), graph(**inputs, **answer)
        assert list(got) == list(want)
        for key, value in got.items():
            torch.testing.assert_close(value, want[key], **PARITY[value.dtype])
        want.loss.backward()
        got.loss.backward()
        torch.testing.assert_close(
            ours.weight.grad, their_head.weight.grad, **PARITY[torch.float32]
        )


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_ways_to_make_one_vector_of_a_text(pool):
    head = {"sequence_classification": {"labels": 3, "pool": pool}}
    graph = peftc.apply(
        {"peftc": 1, "name": "n", "tasks": {"t": {"head": head}}, "insert": []},
        zoo.captured("bert", "base"),
    )
    reference.randomise(graph)
    inputs = zoo.inputs(zoo.model("bert"), 4, 9)
    for side in ("right", "left"):
        if side == "left":
            inputs = {n: v.flip(1) for n, v in inputs.items()}
        with torch.no_grad():
            states = zoo.model("bert")(**inputs).last_hidden_state
            got = graph(**inputs).logits
        real = [row[m.bool()] for row, m in zip(states, inputs["attention_mask"], strict=True)]
        vectors = {
            "first": states[:, 0],
            "mean": torch.stack([r.mean(0) for r in real]),
            "last": torch.stack([r[-1] for r in real]),
        }[pool]
        layer = graph.get_submodule("peft.tasks.t.linear")
        want = linear(vectors, layer.weight, layer.bias)
        torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_a_text_is_read_where_the_model_has_seen_all_of_it():
    """The pooler where there is one, else the first token, or the last of a causal model."""
    found = {}
    small = zoo.CONFIGS["bert"]()
    small.num_hidden_layers = 1
    without = BertModel(small, add_pooling_layer=False).eval()
    for name, program in (
        ("bert", zoo.captured("bert", "base")),
        ("gpt2", zoo.captured("gpt2", "base")),
        ("llama", zoo.captured("llama", "base")),
        ("no pooler", capture(without)),
    ):
        plan = peftc.plan(PREFIX, program)
        found[name] = next(t["reads"] for t in plan.to_json()["tasks"] if t["name"] == "topic")
    assert found == {
        "bert": "pooler_output",
        "gpt2": "last token",
        "llama": "last token",
        "no pooler": "first token",
    }


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


def refusal(written, program) -> str:
    with pytest.raises(PeftcError) as caught:
        peftc.plan(written, program)
    return str(caught.value)


def test_models_that_cannot_have_heads_are_refused(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        "peftc: 1\nname: n\ntasks:\n  ner: {head: {token_classification: {labels: 9}}}\n"
    )
    text = refusal(path, zoo.captured("bert", "token-classification")).replace(str(path), "m.yaml")
    assert text == (
        "error[E106]: task `ner` brings a head, but BertForTokenClassification has one already\n"
        " --> m.yaml:4:8\n"
        "  |\n"
        "4 |   ner: {head: {token_classification: {labels: 9}}}\n"
        "  |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "  = help: load the base model: AutoModel in Python, --task feature-extraction here"
    )
    text = refusal(path, zoo.captured("t5", "seq2seq-lm"))
    assert "task `ner` needs an encoder or a decoder, and this model is both" in text
    path.write_text(
        "peftc: 1\nname: n\ntasks:\n"
        "  train: {head: {sequence_classification: {labels: 9, pool: pooler}}}\n"
    )
    text = refusal(path, zoo.captured("gpt2", "base"))
    assert "a task cannot be called `train`: modules have that name" in text
    path.write_text(path.read_text().replace("train", "topic"))
    text = refusal(path, zoo.captured("gpt2", "base"))
    assert "error[E106]: task `topic` reads a pooler; GPT2Model has none" in text


def test_calls_that_do_not_say_which_task_are_refused():
    graph = applied(PREFIX)
    inputs, ids = mixed("bert", 3, 6)
    for call, message in (
        (
            {"labels": ids},
            "the graph has several tasks: say which\n  = help: tasks: ner, topic, qa",
        ),
        ({"task": "nre"}, "no task `nre`"),
        ({"labels_topic": ids}, "need `task_ids`"),
        ({"taskids": ids}, "unknown: taskids"),
    ):
        with pytest.raises(PeftcError) as caught:
            graph(**inputs, **call)
        assert message in str(caught.value)
    with pytest.raises(PeftcError, match="no task `b`"):
        peftc.select_task(graph, "b")
    with pytest.raises(PeftcError, match="the spec has no `tasks`"):
        peftc.select_task(zoo.captured("bert", "base"), "ner")


def test_an_artifact_keeps_the_tasks(tmp_path):
    graph = applied(PREFIX)
    peftc.save(graph, tmp_path / "out")
    again = peftc.load(tmp_path / "out", zoo.model("bert"))
    inputs, ids = mixed("bert", 3, 6)
    with torch.no_grad():
        for name, value in graph(**inputs, task_ids=ids).items():
            assert torch.equal(again(**inputs, task_ids=ids)[name], value)
    assert "peft.p.layer0_attn_kv.qa.key" in dict(again.peft_parameters())
    assert "| `tasks.ner` | token_classification" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "case", "to", "task"),
    [
        ("gpt2", "prefix", "onnx", None),
        ("gpt2", "prefix", "torchscript", "qa"),
        ("bert", "lora", "torchscript", None),
    ],
)
def test_exports_of_all_tasks_and_of_one_run_in_their_own_runtime(kind, case, to, task, tmp_path):
    graph = applied(CASES[case], kind, layers=1)
    exported = peftc.export(graph, to, tmp_path / "out", task=task)
    report = peftc.verify(graph, tmp_path / "out")
    assert report.ok, report
    inputs = [i["name"] for i in exported.facts["inputs"]]
    if task is None:
        names = {"logits_ner", "logits_topic", "start_logits_qa", "end_logits_qa"}
        assert inputs[-1] == "task_ids"
    else:
        names = {"start_logits", "end_logits"}
        assert "task_ids" not in inputs
        assert not [n for n in exported.facts["peft"] if "ner" in n or "topic" in n]
    assert {r.output for r in report.rows} == names


def test_what_peft_has_no_form_of_is_refused(tmp_path):
    with pytest.raises(PeftcError, match="it has no form of: Head") as caught:
        peftc.export(applied(LORA), "peft", tmp_path / "out", task="ner")
    assert caught.value.diagnostics[0].code == "E408"
    with pytest.raises(PeftcError, match="E307"):
        peftc.save(peftc.select_task(applied(LORA), "ner"), tmp_path / "out")
