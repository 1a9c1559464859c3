"""Plans: every refusal with its place, and the notes."""

from __future__ import annotations

import pytest
import zoo
from torch import nn

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.spec.catalogue import names

TEXT = """peftc: 1
name: n
insert:
  - id: a
    at: {at}
    delta: {delta}
{rest}"""


def refusal(tmp_path, at, delta, rest="", family=("bert", "base")) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT.format(at=at, delta=delta, rest=rest))
    with pytest.raises(PeftcError) as caught:
        peftc.plan(path, zoo.captured(*family))
    assert caught.value.exit_code == 3
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_a_role_that_the_model_lacks(tmp_path):
    text = refusal(tmp_path, "cross.kv", "{prefix: {tokens: 3}}")
    assert text.startswith(
        "error[E101]: `cross.kv` matches nothing in BertModel\n"
        " --> mine.yaml:5:9\n"
        "  |\n"
        "5 |     at: cross.kv\n"
        "  |         ^^^^^^^^ this model has no such site\n"
        "  = help: sites of this model: embed.out, attn.q, attn.k, attn.v, "
    )
    assert text.endswith("to skip it on models that lack it: `optional: true`")


def test_every_entry_of_a_list_must_match(tmp_path):
    text = refusal(tmp_path, "[attn.q, ffn.gate]", "{low_rank: {rank: 3}}")
    assert "`ffn.gate` matches nothing" in text
    assert "5:18" in text


def test_a_module_glob_with_a_typo(tmp_path):
    text = refusal(
        tmp_path, '{module: "encoder.layer.*.attention.self.qeury"}', "{low_rank: {rank: 3}}"
    )
    assert "error[E101]: `module: encoder.layer.*.attention.self.qeury` matches nothing" in text
    assert "did you mean `encoder.layer.*.attention.self.query`? (3 modules)" in text


def test_a_rank_that_is_no_reduction(tmp_path):
    text = refusal(tmp_path, "attn.v", "{low_rank: {rank: 20}}", family=("llama", "causal-lm"))
    assert "error[E103]: rank 20 is too large for the layer" in text
    assert "^^ attn.v, layer 0: 24 > 20 (2 key/value heads x 10)" in text
    assert "rank must be below 20 here" in text


def test_a_rank_that_one_task_has_is_shown_where_it_is_said(tmp_path):
    rest = """    share: per_task
    by_task:
      b: {delta: {low_rank: {rank: 30}}}
tasks:
  a: {head: question_answering}
  b: {head: question_answering}
"""
    text = refusal(tmp_path, "attn.v", "{low_rank: {rank: 3}}", rest)
    assert "error[E103]: rank 30 is too large" in text
    assert "mine.yaml:9:36" in text


def test_layers_that_the_model_does_not_have(tmp_path):
    text = refusal(tmp_path, "attn.out", "{bottleneck: {dim: 3}}", "    layers: last 8\n")
    assert "error[E107]: `layers: last 8` of a stack of 3 layers" in text


def test_expectations_hold_or_are_refused(tmp_path):
    text = refusal(tmp_path, "attn.out", "{bottleneck: {dim: 3}}", "expect: {sites: 2 per layer}\n")
    assert "the spec expects 6 sites, 2 in each of 3 layers; on this model it has 3" in text


def test_what_does_not_fit_is_not_missed_in_the_count_as_well(tmp_path):
    rest = "expect: {sites: 1 per layer}\n"
    text = refusal(tmp_path, "attn.v", "{low_rank: {rank: 30}}", rest)
    assert "error[E103]" in text
    assert "error[E102]" not in text


def test_unfreezing_what_is_not_there(tmp_path):
    text = refusal(tmp_path, "attn.out", "{bottleneck: {dim: 3}}", "unfreeze:\n  - {role: head}\n")
    assert "error[E101]: unfreeze: `head` matches no parameter of BertModel" in text


def test_optional_insertions_are_left_out_with_a_note():
    spec = {
        "peftc": 1,
        "name": "n",
        "insert": [
            {"id": "a", "at": "cross.kv", "delta": {"prefix": {"tokens": 3}}, "optional": True}
        ],
    }
    plan = peftc.plan(spec, zoo.captured("bert", "base"))
    assert [n.code for n in plan.notes] == ["W102"]
    assert plan.insertions == ()


def test_a_module_glob_inserts_at_the_modules_it_names():
    spec = {
        "peftc": 1,
        "name": "n",
        "insert": [
            {
                "id": "a",
                "at": {"module": "encoder.layer.*.attention.self.query"},
                "delta": {"low_rank": {"rank": 3}},
            }
        ],
    }
    plan = peftc.plan(spec, zoo.captured("bert", "base"))
    assert [p.module for p in plan.insertions[0].places] == [
        f"encoder.layer.{k}.attention.self.query" for k in range(3)
    ]
    assert plan.inserted == 3 * (3 * 24 + 24 * 3)


FAMILIES = {"bert": "base", "gpt2": "causal-lm", "llama": "causal-lm", "t5": "seq2seq-lm"}
# Shipped specs that a family cannot have: no biases, one stack, or no one stack for heads.
REFUSED = {
    **{("bitfit", family): "E101" for family in ("llama", "t5")},
    **{("prefix_seq2seq", family): "E101" for family in ("bert", "gpt2", "llama")},
    ("ptuning2_multitask", "t5"): "E106",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_and_apply_agree_on_every_site(family):
    for spec in names():
        brings_heads = peftc.load_spec(spec).tasks
        captured = zoo.captured(family, "base" if brings_heads else FAMILIES[family])
        if (code := REFUSED.get((spec, family))) is not None:
            for verb in (peftc.plan, peftc.apply):
                with pytest.raises(PeftcError, match=code):
                    verb(spec, captured)
            continue
        plan = peftc.plan(spec, captured).to_json()
        graph = peftc.apply(spec, captured)
        assert graph.meta["peftc.applied"].plan == plan
        inserted = sum(p.numel() for _, p in graph.peft_parameters())
        assert inserted == plan["parameters"]["inserted"]
        trained = sum(p.numel() for p in peftc.trainable(graph).values())
        assert trained == plan["parameters"]["trainable"]
        modules = {n.target for n in graph.graph.nodes if n.op == "call_module"}
        for entry in plan["insertions"]:
            assert any(str(m).startswith(f"peft.{entry['id']}.") for m in modules)


class Nested(nn.Module):
    """Two linears whose paths are one name once their dots are gone, and one that ends in gate."""

    def __init__(self):
        super().__init__()
        self.a_b, self.a = nn.Module(), nn.Module()
        self.a_b.c = nn.Linear(24, 24)
        self.a.b_c = nn.Linear(24, 24)
        self.a.gate = nn.Linear(24, 24)

    def forward(self, x):
        return self.a.gate(self.a.b_c(self.a_b.c(x)))


def test_places_of_one_name_are_told_apart():
    model = zoo.build("bert")
    model.encoder.layer[1].attention.output.dense = Nested()
    at = [{"module": f"*.dense.{p}"} for p in ("a_b.c", "a.b_c", "a.gate")]
    spec = {"peftc": 1, "name": "n", "insert": [{"id": "x", "at": at, "delta": "vector"}]}
    graph = peftc.apply(spec, model)
    stem = "peft.x.encoder_layer_1_attention_output_dense_a"
    assert sorted(n for n, _ in graph.peft_parameters()) == [
        f"{stem}_b_c.l", f"{stem}_b_c_2.l", f"{stem}_gate_.l",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["train", "forward", "half"])
def test_an_id_that_modules_have_is_refused(name):
    spec = {"peftc": 1, "name": "n", "insert": [{"id": name, "at": "ffn.up", "delta": "vector"}]}
    with pytest.raises(peftc.PeftcError, match=f"E005.*`{name}` cannot be an id"):
        peftc.plan(spec, zoo.captured("bert"))
