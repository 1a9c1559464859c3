"""Several prompts on one stack, and what else stands at the embeddings: against inputs_embeds."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import PARITY

import peftc
from peftc.ground.diagnostics import PeftcError

FAMILIES = [("bert", "token-classification"), ("llama", "causal-lm"), ("t5", "seq2seq-lm")]
SHAPES = [(4, 9), (2, 5)]


def insertion(id, delta, **more):
    return {"id": id, "at": "embed.out", "delta": delta, **more}


def prompt(id, tokens, place="before", **more):
    return insertion(id, {"prompt": {"tokens": tokens, "place": place}}, **more)


def spec(*insert):
    return {"peftc": 1, "name": "prompts", "insert": list(insert)}


def tables(graph):
    return {n.split(".")[1]: p.detach() for n, p in graph.peft_parameters()}


def expected(model, kind, inputs, before, behind, change=lambda e: e):
    """The plain model on [before; e0; behind; e1 ...], cut back to the text; e is changed first."""
    batch = len(inputs["input_ids"])

    def longer(x, before, behind):
        return torch.cat([before, x[:, :1], behind, x[:, 1:]], 1)

    def filled(x, fill):
        return longer(x, *(torch.full((batch, len(rows)), fill) for rows in (before, behind)))

    rows = [r[None].expand(batch, -1, -1) for r in (before, behind)]
    e = change(model.get_input_embeddings()(inputs["input_ids"]))
    given = {
        "inputs_embeds": longer(e, *rows),
        "attention_mask": filled(inputs["attention_mask"], 1),
    }
    if "token_type_ids" in inputs:
        given["token_type_ids"] = filled(inputs["token_type_ids"], 0)
    if kind == "t5":
        return model(**given, decoder_input_ids=inputs["decoder_input_ids"]).logits
    whole = reference.main_output(model(**given))
    first = len(before)
    return torch.cat([whole[:, first : first + 1], whole[:, first + 1 + len(behind) :]], 1)


ORDERS = {
    "two before": [prompt("a", 3), prompt("b", 4)],
    "two behind": [prompt("a", 3, "after_first"), prompt("b", 4, "after_first")],
    "before, behind": [prompt("a", 3), prompt("b", 4, "after_first")],
    "behind, before": [prompt("a", 3, "after_first"), prompt("b", 4)],
    "four": [prompt("a", 3), prompt("b", 2, "after_first"), prompt("c", 1),
             prompt("d", 5, "after_first")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "task", "order"),
    [(*FAMILIES[0], order) for order in ORDERS] + [(*family, "four") for family in FAMILIES[1:]],
)
def test_prompts_stand_behind_one_another_in_the_order_of_the_spec(kind, task, order):
    model, one = zoo.model(kind, task), spec(*ORDERS[order])
    graph = peftc.apply(one, zoo.captured(kind, task))
    reference.randomise(graph)
    found = tables(graph)
    rows = {"before": [torch.empty(0, 24)], "after_first": [torch.empty(0, 24)]}
    for i in one["insert"]:
        rows[i["delta"]["prompt"]["place"]].append(found[i["id"]])
    before, behind = (torch.cat(r) for r in rows.values())
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            got = reference.main_output(graph(**inputs))
            want = expected(model, kind, inputs, before, behind)
        torch.testing.assert_close(got, want, **PARITY[got.dtype])


@pytest.mark.parametrize("first", ["prompt", "vector"])
def test_a_vector_acts_on_the_prompts_before_it_and_on_none_behind_it(first):
    model, scaled = zoo.model("bert", "base"), insertion("v", "vector")
    insert = [prompt("a", 3), scaled, prompt("b", 2), prompt("c", 4, "after_first")]
    insert = insert if first == "prompt" else [scaled, *insert[:1], *insert[2:]]
    graph = peftc.apply(spec(*insert), zoo.captured("bert", "base"))
    reference.randomise(graph)
    rows = tables(graph)
    a = rows["a"] * rows["v"] if first == "prompt" else rows["a"]
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            want = expected(model, "bert", inputs, torch.cat([a, rows["b"]]), rows["c"],
                            lambda e: e * rows["v"])  # fmt: skip
            got = graph(**inputs).last_hidden_state
        torch.testing.assert_close(got, want, **PARITY[got.dtype])


@pytest.mark.parametrize("first", ["prompt", "update"])
@pytest.mark.parametrize("place", ["before", "after_first"])
def test_an_update_of_the_embeddings_table_leaves_the_rows_of_prompts_alone(first, place):
    model = zoo.model("bert", "base")
    insert = [prompt("a", 3, place), insertion("u", {"low_rank": {"rank": 2}}, form="parallel")]
    graph = peftc.apply(spec(*insert[:: 1 if first == "prompt" else -1]), zoo.captured("bert"))
    reference.randomise(graph)
    w = {n.rpartition(".")[2]: p.detach() for n, p in graph.peft_parameters()}
    none, table = torch.empty(0, 24), w["embedding"]
    rows = (table, none) if place == "before" else (none, table)
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            update = (w["B"] @ w["A"])[:, inputs["input_ids"]].permute(1, 2, 0)
            want = expected(model, "bert", inputs, *rows, lambda e, u=update: e + u)
            got = graph(**inputs).last_hidden_state
        torch.testing.assert_close(got, want, **PARITY[got.dtype])
        assert update.abs().max() > 1e-2


def test_a_prefix_and_an_infix_stand_beside_two_prompts():
    """What prefixes do to one prompt of seven rows, they do to prompts of three and four."""
    for more in ({}, {"before": 9}):
        delta = {"prefix": {"tokens": 5, **more}}
        prefix = {"id": "k", "at": "attn.kv", "delta": delta}
        program = zoo.captured("llama", "causal-lm")
        two = peftc.apply(spec(prompt("a", 3), prefix, prompt("b", 4)), program)
        one = peftc.apply(spec(prefix, prompt("a", 7)), program)
        reference.randomise(two)
        given = dict(two.peft_parameters())
        with torch.no_grad():
            for name, p in one.peft_parameters():
                rows = [given[name], given.get(name.replace(".a.", ".b."))]
                p.copy_(torch.cat(rows) if ".a." in name else rows[0])
            inputs = zoo.inputs(zoo.model("llama", "causal-lm"), 4, 9)
            inputs["input_ids"][:, 3] = 9
            torch.testing.assert_close(one(**inputs).logits, two(**inputs).logits)


def test_an_ensemble_and_a_prompt_that_its_members_share():
    """Each member's rows stand where the spec has them, the shared ones behind them."""
    delta = {"prompt": {"tokens": 3, "ensemble": 2, "vote": "mean"}}
    program = zoo.captured("bert", "sequence-classification")
    model = zoo.model("bert", "sequence-classification")
    graph = peftc.apply(spec(insertion("e", delta), prompt("s", 4)), program)
    single = peftc.apply(spec(prompt("e", 3), prompt("s", 4)), program)
    reference.randomise(graph)
    rows, alone = tables(graph), dict(single.peft_parameters())
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        apart = []
        with torch.no_grad():
            for member in rows["e"]:
                alone["peft.e.embed_out.embedding"].copy_(member)
                alone["peft.s.embed_out.embedding"].copy_(rows["s"])
                apart.append(single(**inputs).logits)
            got = graph(**inputs).logits
        torch.testing.assert_close(got, torch.stack(apart).mean(0), **PARITY[got.dtype])
        assert (apart[0] - apart[1]).abs().max() > 1e-3


def test_two_prompts_of_each_tasks_own_are_those_of_the_task_alone():
    tasks = {n: {"head": {"token_classification": {"labels": k}}} for n, k in (("x", 3), ("y", 5))}
    insert = [prompt("a", 3, share="per_task"), prompt("b", 2, "after_first", share="per_task")]
    graph = peftc.apply({**spec(*insert), "tasks": tasks}, zoo.captured("bert", "base"))
    reference.randomise(graph)
    inputs = zoo.inputs(zoo.model("bert", "base"), 4, 9)
    for number, task in enumerate(tasks):
        with torch.no_grad():
            together = graph(**inputs, task_ids=torch.full((4,), number))[f"logits_{task}"]
            alone = peftc.select_task(graph, task)(**inputs).logits
        torch.testing.assert_close(together, alone, **PARITY[alone.dtype])


def test_prompts_that_disagree_are_refused_at_their_place():
    other = prompt("b", 2, compose={"prepend": {"trim": False}})
    with pytest.raises(PeftcError, match=r"E015.*`trim` of `b` and of `a` differ"):
        peftc.load_spec(spec(prompt("a", 3), other))
    decoder = prompt("b", 2, stack="decoder", compose={"prepend": {"trim": False}})
    peftc.load_spec(spec(prompt("a", 3), decoder))
    mix = insertion("m", {"pipe": [{"conv1d": {"kernel": 3}}]})
    with pytest.raises(PeftcError, match=r"E016.*`m` mixes tokens before the prompt `a`"):
        peftc.load_spec(spec(mix, prompt("a", 3)))
    peftc.load_spec(spec(prompt("a", 3), mix))


def test_a_module_that_mixes_tokens_in_front_of_a_prompt_is_refused_by_plan_and_apply():
    mix = insertion("m", {"pipe": [{"conv1d": {"kernel": 3}}]})
    mix["at"] = {"module": "embeddings.word_embeddings"}
    for does in (peftc.plan, peftc.apply):
        with pytest.raises(PeftcError, match=r"E120.*embeddings.word_embeddings would read"):
            does(spec(mix, prompt("a", 3)), zoo.captured("bert"))
        does(spec(prompt("a", 3), mix), zoo.captured("bert"))


def test_the_graph_of_two_prompts_as_text():
    """Room is made once; each prompt overwrites its rows; both are cut behind the last block."""
    from peftc.capture.listing import listing

    graph = peftc.apply(spec(prompt("a", 3), prompt("b", 2, "after_first")), zoo.captured("bert"))
    text = listing(graph)
    assert text.count("peft.a.embed_out") == text.count("peft.b.embed_out") == 1
    pieces = dict(graph.named_modules())
    first = {n: pieces[f"peft.{n}.embed_out"].first for n in "ab"}
    assert first == {"a": 0, "b": 4}
    names = [r.name for r in graph.meta["peftc.applied"].reports]
    assert names == [
        "lengthen embed_out by 5",
        "insert peft.a.embed_out",
        "insert peft.b.embed_out",
        "trim embed_out by 5",
    ]
