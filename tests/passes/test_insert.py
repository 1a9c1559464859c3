"""Insertions at sites: exact at zero, equal to forward hooks on the plain model when not."""

from __future__ import annotations

import pytest
import reference
import torch
import zoo
from tolerances import PARITY

import peftc

FAMILIES = [
    ("bert", "base"),
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("t5", "seq2seq-lm"),
]
SHAPES = [(4, 9), (1, 5)]
SPECS = ["houlsby", "lora", "ia3"]


@pytest.fixture(scope="module", params=FAMILIES, ids="/".join)
def family(request):
    return request.param


@pytest.mark.parametrize("spec", SPECS)
def test_zero_initialised_pieces_leave_the_outputs_exactly_equal(family, spec):
    model = zoo.model(*family)
    options = {"init": "zero_up"} if spec == "houlsby" else {}
    graph = peftc.apply(spec, zoo.captured(*family), set=options)
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            got, want = graph(**inputs), model(**inputs, use_cache=False)
        assert type(got) is type(want)
        torch.testing.assert_close(
            reference.main_output(got), reference.main_output(want), rtol=0, atol=0
        )


def test_houlsby_starts_near_the_model_with_both_projections_drawn_as_in_the_paper(family):
    model = zoo.model(*family)
    graph = peftc.apply("houlsby", zoo.captured(*family))
    weights = [p.detach() for n, p in graph.peft_parameters() if n.endswith("weight")]
    assert all(0 < w.abs().max() <= 2e-2 for w in weights), "truncated at two sigma"
    every = torch.cat([w.flatten() for w in weights])
    assert 0.8e-2 < every.std() < 1e-2  # of a normal truncated at two sigma: 0.88 sigma
    assert all(not p.any() for n, p in graph.peft_parameters() if n.endswith("bias"))
    inputs = zoo.inputs(model, 4, 9)
    with torch.no_grad():
        got, want = (reference.main_output(f(**inputs)) for f in (graph, model))
    assert 0 < (got - want).abs().max() < 1e-2 * want.abs().max()


@pytest.mark.parametrize("spec", SPECS)
def test_random_pieces_equal_forward_hooks(family, spec):
    kind, _ = family
    model = zoo.model(*family)
    graph = peftc.apply(spec, zoo.captured(*family))
    reference.randomise(graph)
    changes = []
    for insertion in graph.meta["peftc.applied"].plan["insertions"]:
        for site, piece in reference.placed(graph, insertion["id"]):
            changes.append(change_of(model, kind, spec, site, piece))
    for batch, length in SHAPES:
        inputs = zoo.inputs(model, batch, length)
        with torch.no_grad():
            got = reference.main_output(graph(**inputs))
            plain = reference.main_output(model(**inputs, use_cache=False))
            with reference.changed(model, kind, changes):
                want = reference.main_output(model(**inputs, use_cache=False))
        torch.testing.assert_close(got, want, **PARITY[got.dtype])
        assert (want - plain).abs().max() > 1e-3, "the pieces have no effect"


def change_of(model, kind, spec, site, piece):
    """What the spec does to h at one site, in the words of its paper, not of the compiler."""
    role = site["role"]
    if spec == "houlsby":
        w = {n: p.detach() for n, p in piece.named_parameters()}

        def change(x, h):
            inner = torch.nn.functional.silu(h @ w["down.weight"].T + w["down.bias"])
            return h + inner @ w["up.weight"].T + w["up.bias"]

    elif spec == "lora":

        def change(x, h):
            return h + 2.0 * (x @ piece.A.T) @ piece.B.T

    else:

        def change(x, h):
            return h * piece.l

    if kind == "gpt2" and role in ("attn.q", "attn.k", "attn.v"):
        part = reference.fused_part(role, site["width"])
        site = {**site, "role": "attn.qkv"}
        whole = change

        def change(x, h):
            h = h.clone()
            h[..., part] = whole(x, h[..., part])
            return h

    return site, change


reference.OUTPUTS["gpt2"]["attn.qkv"] = "h.{i}.attn.c_attn"


def test_stream_reading_adapters_equal_hooks():
    """Pfeiffer's adapter reads what the next block would: LN(h + residual) in post-norm blocks."""
    model = zoo.model("bert", "base")
    graph = peftc.apply("pfeiffer", zoo.captured("bert", "base"))
    reference.randomise(graph)
    [insertion] = graph.meta["peftc.applied"].plan["insertions"]
    pieces = dict(
        (site["layer"], piece) for site, piece in reference.placed(graph, insertion["id"])
    )

    handles = []
    for k, layer in enumerate(model.encoder.layer):

        def output(_m, args, _out, layer=layer, piece=pieces[k]):
            hidden, residual = args
            h = layer.output.dense(hidden)
            delta = piece(layer.output.LayerNorm(h + residual))
            return layer.output.LayerNorm(h + delta + residual)

        handles.append(layer.output.register_forward_hook(output))
    inputs = zoo.inputs(model, 4, 9)
    with torch.no_grad():
        want = model(**inputs).last_hidden_state
        for handle in handles:
            handle.remove()
        got = graph(**inputs).last_hidden_state
    torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_behind_the_last_block_the_stack_s_norm_is_no_part_of_the_stream():
    """A block that starts with a norm reads h + residual, the last one as all others."""
    model = zoo.model("gpt2", "causal-lm")
    graph = peftc.apply("pfeiffer", zoo.captured("gpt2", "causal-lm"))
    reference.randomise(graph)
    stream, changes, handles = {}, [], []
    for site, piece in reference.placed(graph, "after_ffn"):
        layer = site["layer"]
        handles.append(
            model.transformer.h[layer].ln_2.register_forward_pre_hook(
                lambda _m, args, layer=layer: stream.__setitem__(layer, args[0])
            )
        )
        changes.append((site, lambda _x, h, k=layer, piece=piece: h + piece(h + stream[k])))
    inputs = zoo.inputs(model, 4, 9)
    with torch.no_grad(), reference.changed(model, "gpt2", changes):
        want = model(**inputs).logits
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        got = graph(**inputs).logits
    torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_two_insertions_at_one_site_apply_in_the_spec_s_order():
    spec = {
        "peftc": 1,
        "name": "two",
        "insert": [
            {"id": "first", "at": "ffn.out", "delta": {"vector": {}}, "compose": "multiply"},
            {"id": "second", "at": "ffn.out", "delta": {"vector": {}}, "compose": "add"},
        ],
    }
    model = zoo.model("llama", "causal-lm")
    graph = peftc.apply(spec, zoo.captured("llama", "causal-lm"))
    reference.randomise(graph)
    first = dict((s["layer"], p) for s, p in reference.placed(graph, "first"))
    second = dict((s["layer"], p) for s, p in reference.placed(graph, "second"))
    sites = [s for s, _ in reference.placed(graph, "first")]
    changes = [(s, lambda x, h, k=s["layer"]: h * first[k].l + second[k].l) for s in sites]
    inputs = zoo.inputs(model, 2, 7)
    with torch.no_grad(), reference.changed(model, "llama", changes):
        want = model(**inputs, use_cache=False).logits
    with torch.no_grad():
        got = graph(**inputs).logits
    torch.testing.assert_close(got, want, **PARITY[got.dtype])


def test_the_rewrite_is_what_the_pass_says():
    graph = peftc.apply(
        {
            "peftc": 1,
            "name": "one",
            "insert": [
                {
                    "id": "a",
                    "at": "attn.out",
                    "layers": [1],
                    "delta": {"bottleneck": {"dim": 5}},
                    "compose": "add",
                }
            ],
        },
        zoo.captured("bert", "base"),
    )
    [report] = graph.meta["peftc.applied"].reports
    assert [line.split("  @")[0] for line in report.difference] == [
        "-%add_8 = aten.add.Tensor(%dropout_encoder_layer_1_attention_output_dropout, "
        "%layer_norm_2) : f32[batch, sequence, 24]",
        "+%peft_a_layer1_attn_out = peft.a.layer1_attn_out("
        "%dropout_encoder_layer_1_attention_output_dropout) : f32[batch, sequence, 24]",
        "+%add_tensor = aten.add.Tensor(%dropout_encoder_layer_1_attention_output_dropout, "
        "%peft_a_layer1_attn_out) : f32[batch, sequence, 24]",
        "+%add_8 = aten.add.Tensor(%add_tensor, %layer_norm_2) : f32[batch, sequence, 24]",
    ]


def test_the_model_given_is_unchanged():
    model = zoo.build("bert", "sequence-classification")
    before = {n: p.clone() for n, p in model.state_dict().items()}
    gradients = [p.requires_grad for p in model.parameters()]
    graph = peftc.apply("houlsby", model)
    for parameter in peftc.trainable(graph).values():
        parameter.data.add_(1.0)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == gradients
    assert model.config.use_cache is True or model.config.use_cache == before.get("use_cache", True)
