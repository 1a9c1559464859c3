"""Many tasks in one graph: every row equal to its task alone, and to references without peftc."""

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
from peftc.capture import capture
from peftc.diagnostics import PeftcError
from peftc.pipeline import select_task

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
    "lora": LORA,
    "vector": spec({"id": "v", "at": ["attn.k", "ffn.act"], "delta": "vector"}),
    "prompt": spec({"id": "v", "at": "embed.out", "delta": {"prompt": {"tokens": 3}}}),
    "p-tuning": spec({"id": "v", "use": "ptuning", "set": {"tokens": 3, "hidden": 6}}),
    "one prefix for all": spec({**prefix(5), "share": "all_tasks"}),
}  # fmt: skip


def applied(written, kind="bert", seed=0):
    graph = peftc.apply(written, zoo.captured(kind, "base"))
    reference.randomise(graph, seed)
    return graph


def mixed(kind, batch, length):
    """Inputs, and a task for each row: all three in any three rows."""
    inputs = zoo.inputs(zoo.model(kind), batch, length)
    return inputs, (2 * torch.arange(batch)) % 3


@pytest.mark.parametrize(
    ("kind", "case"),
    [("bert", c) for c in CASES]
    + [("gpt2", c) for c in ("lora", "vector")]
    + [("llama", c) for c in ("prefix with an MLP each", "gate", "prompt")],
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
def test_prefixes_of_different_lengths_equal_peft_s_with_the_same_weights(kind):
    """PEFT's prefix tuning on the plain model, once for each task; heads by hand."""
    graph = applied(PREFIX, kind)
    model = zoo.model(kind)
    for batch, length in SHAPES:
        inputs, ids = mixed(kind, batch, length)
        inputs.pop("token_type_ids", None)  # PEFT leaves them out
        with torch.no_grad():
            got = graph(**inputs, task_ids=ids)
        for k, (task, tokens) in enumerate({"ner": 2, "topic": 4, "qa": 7}.items()):
            config = PrefixTuningConfig(
                task_type="FEATURE_EXTRACTION", num_virtual_tokens=tokens, inference_mode=False
            )
            theirs = get_peft_model(copy.deepcopy(model), config).eval()
            layers = [p.of(task) for _, p in reference.placed(graph, "p")]
            parts = [t.transpose(0, 1).flatten(1) for p in layers for t in (p.key, p.value)]
            table = theirs.prompt_encoder["default"].embedding.weight
            assert table.shape == (tokens, sum(p.shape[1] for p in parts))
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
    model = zoo.build("llama")
    model.set_attn_implementation("eager")
    inputs, ids = mixed("llama", 5, 9)
    graphs = []
    for program in (capture(model), zoo.captured("llama", "base")):
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
    theirs = FACTORIES[head].from_config(zoo.CONFIGS[kind]()).eval()
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
        assert type(got) is type(want)
        assert list(got) == [k for k in want if k != "past_key_values"]
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
    without = BertModel(zoo.CONFIGS["bert"](), add_pooling_layer=False).eval()
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


def test_a_folded_bank_has_no_networks_and_the_same_outputs():
    from peftc.pipeline import fold

    graph = applied(CASES["prefix with an MLP each"], "llama")
    folded, _ = fold(graph)
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
    from peftc.pipeline import fold

    graph = applied(LORA)
    bank, _ = fold(graph)
    one, _ = fold(peftc.select_task(graph, "ner"))
    assert len([n for n, _ in bank.peft_parameters() if n.startswith("peft.l.")]) == 6 * 3 * 2
    assert not [n for n, _ in one.peft_parameters() if n.startswith("peft.l.")]
    inputs, _ = mixed("bert", 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            one(**inputs).logits, graph(**inputs, task="ner").logits, rtol=0, atol=1e-4
        )


def test_what_the_passes_change_is_printed():
    made = {"p": prefix("$t")}
    written = spec(made["p"], variables={"t": 4}, qa={"t": 7})
    graph = peftc.apply(written, zoo.captured("gpt2", "base"))
    reports = {r.name: r.difference for r in graph.meta["peftc.applied"].reports}
    assert list(reports) == [
        "AddTaskIds",
        "insert peft.p (3 attentions)",
        "shift positions by 4, 4, 7",
        "add heads: ner, topic, qa",
    ]
    assert reports["AddTaskIds"] == ("+%task_ids = input : int64[batch]",)
    added = reports["insert peft.p (3 attentions)"]
    assert [t for t in added if "peft.p.mask" in t] == [
        "+%peft_p_mask = peft.p.mask(%task_ids, %expand) : "
        "bool[batch, 1, sequence, sequence + 7]  @"
    ]
    assert reports["add heads: ner, topic, qa"] == (
        "+%peft_tasks_ner = peft.tasks.ner(%reshape_50) : f32[batch, sequence, 9]",
        "+%peft_tasks_topic = peft.tasks.topic(%reshape_50, %attention_mask) : f32[batch, 3]",
        "+%peft_tasks_qa = peft.tasks.qa(%reshape_50) : "
        "(f32[batch, sequence], f32[batch, sequence])",
        "+%getitem_6 = _operator.getitem(%peft_tasks_qa, 0) : f32[batch, sequence]",
    )
    _, (report,) = select_task(graph, "qa")
    assert report.name == "select task qa"
    assert report.difference == ()


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
    text = refusal(path, zoo.captured("t5", "base"))
    assert "task `ner` needs an encoder or a decoder; T5Model is both" in text
    path.write_text(
        "peftc: 1\nname: n\ntasks:\n"
        "  train: {head: {sequence_classification: {labels: 9, pool: pooler}}}\n"
    )
    text = refusal(path, zoo.captured("gpt2", "base"))
    assert "a task cannot be called `train`: torch's modules have that name" in text
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


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize("case", ["prefix", "lora"])
def test_exports_run_mixed_batches_and_single_tasks_in_their_own_runtime(kind, case, tmp_path):
    graph = applied(CASES[case], "bert" if case == "lora" else "llama")
    peftc.export(graph, kind, tmp_path / "all")
    report = peftc.verify(graph, tmp_path / "all")
    assert report.ok, report
    assert {r.output for r in report.rows} == {
        "logits_ner", "logits_topic", "start_logits_qa", "end_logits_qa",
    }  # fmt: skip
    exported = peftc.export(graph, kind, tmp_path / "qa", task="qa")
    assert not [n for n in exported.facts["peft"] if "ner" in n or "topic" in n]
    assert "task_ids" not in [i["name"] for i in exported.facts["inputs"]]
    report = peftc.verify(graph, tmp_path / "qa")
    assert report.ok, report
    assert {r.output for r in report.rows} == {"start_logits", "end_logits"}
