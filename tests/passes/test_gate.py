"""Gates, constant and reading: equal to their formula by hooks and by attention written out."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import flops
import pytest
import reference
import torch
import zoo
from tolerances import PARITY
from torch.nn import functional
from transformers import AutoModel, DeepseekV3Config
from transformers.integrations import sdpa_attention
from transformers.masking_utils import eager_mask

import peftc
from peftc.capture import capture
from peftc.rewrite.pipeline import fold

FLOAT = PARITY[torch.float32]
TASKS = {"bert": "base", "gpt2": "causal-lm", "llama": "causal-lm", "t5": "seq2seq-lm"}
SMALL = {"rank": 3, "alpha": 6, "tokens": 4, "hidden": 7, "dim": 5}
# The modules before the feed-forward blocks, which read the residual stream.
BEFORE = {
    "gpt2": "h.{i}.ln_2",
    "llama": "layers.{i}.post_attention_layernorm",
    "t5": "{stack}.block.{i}.layer.{last}.layer_norm",
}


def opening(graph, insertion, site, x=None):
    """g of the gate at a site, from its own weights."""
    gate = graph.get_submodule(f"peft.{insertion}.{site['name']}_gate")
    if x is None:
        return gate.g
    return torch.sigmoid(functional.linear(x, gate.linear.weight, gate.linear.bias))


def outputs(model, given):
    """The main output, without gradients."""
    with torch.no_grad():
        return reference.main_output(model(**given))


def gated(compose, at="attn.out", delta=None, id="a"):
    """A spec of one gated insertion."""
    entry = {"id": id, "at": at, "delta": delta or {"bottleneck": {"dim": 5}}, "compose": compose}
    return {"peftc": 1, "name": "gated", "insert": [entry]}


def gated_prefix(tokens, compose=None):
    """A spec of one prefix, `prefix`, behind a gate that reads."""
    delta = {"prefix": {"tokens": tokens, "reparam": {"hidden": 7}, "positions": "keep"}}
    return gated(compose or {"attend": {"gate": {"reads": "x"}}}, "attn.kv", delta, "prefix")


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(
    "compose",
    [
        {"gate": {"init": 0.2, "per": "channel", "reads": "h"}},
        {"add": {"scale": 1.5, "gate": {"init": 0.3, "reads": "h"}}},
        {"add": {"scale": 1.5, "gate": {"init": 3, "per": "channel"}}},
    ],
    ids=["convex", "added", "constant"],
)
def test_a_gated_adapter_equals_its_formula(kind, compose):
    model = zoo.model(kind, TASKS[kind])
    graph = peftc.apply(gated(compose), zoo.captured(kind, TASKS[kind]))
    planned = graph.meta["peftc.applied"].plan["parameters"]["inserted"]
    assert planned == sum(p.numel() for _, p in graph.peft_parameters())
    reference.randomise(graph)
    changes = []
    for site, piece in reference.placed(graph, "a"):

        def change(_x, h, site=site, piece=piece):
            if "gate" in compose:
                g = opening(graph, "a", site, h)
                return (1 - g) * h + g * piece(h)
            reads = "reads" in compose["add"]["gate"]
            return h + 1.5 * opening(graph, "a", site, h if reads else None) * piece(h)

        changes.append((site, change))
    given = zoo.inputs(model)
    with reference.changed(model, kind, changes):
        wanted = outputs(model, given)
    torch.testing.assert_close(outputs(graph, given), wanted, **FLOAT)
    torch.testing.assert_close(outputs(fold(graph)[0], given), wanted, **FLOAT)


def test_a_gate_at_a_part_of_a_fused_projection_changes_that_part_alone():
    model = zoo.model("gpt2", "causal-lm")
    compose = {"gate": {"init": 0.3, "per": "channel"}}
    graph = peftc.apply(gated(compose, at="attn.v"), zoo.captured("gpt2", "causal-lm"))
    reference.randomise(graph)
    given, handles = zoo.inputs(model), []
    for site, piece in reference.placed(graph, "a"):

        def hook(_module, _args, out, site=site, piece=piece):
            part = reference.fused_part("attn.v", site["width"])
            h, g = out[..., part], opening(graph, "a", site)
            out = out.clone()
            out[..., part] = (1 - g) * h + g * piece(h)
            return out

        module = model.transformer.h[site["layer"]].attn.c_attn
        handles.append(module.register_forward_hook(hook))
    try:
        wanted = outputs(model, given)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(outputs(graph, given), wanted, **FLOAT)


def attend(module, query, key, value, attention_mask, scaling=None, position_bias=None, **_):
    """softmax over [g q P_k; q k] and [g P_v; v], from what the test put on the module."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    if position_bias is not None:
        scores = scores + position_bias
    if hasattr(module, "given_prefix"):
        *pair, g = module.given_prefix
        prefix_k, prefix_v = (p.repeat_interleave(query.shape[1] // len(p), 0) for p in pair)
        beside = g.unsqueeze(1) * (query @ prefix_k.transpose(1, 2)) * scaling
        shares = torch.cat([beside, scores], -1).softmax(-1)
        tokens = prefix_k.shape[1]
        made = shares[..., tokens:] @ value + g.unsqueeze(1) * (shares[..., :tokens] @ prefix_v)
    else:
        shares = scores.softmax(-1)
        made = shares @ value
    return made.transpose(1, 2).contiguous(), shares


@contextmanager
def written_out(model):
    """Within, the model's attention is `attend`."""
    with reference.attention(model, attend, eager_mask):
        yield


@contextmanager
def prefixed(model, graph):
    """Within, a model's attention has the gated prefix of a graph, `prefix`."""
    with written_out(model), ExitStack() as stack:
        keys = graph.get_submodule("peft.prefix.reparam")()
        for n, (site, _) in enumerate(reference.placed(graph, "prefix")):
            module = model.get_submodule(site["module"])
            pair = keys[2 * n : 2 * n + 2]

            def give(module, args, kwargs, site=site, pair=pair):
                x = args[0] if args else kwargs["hidden_states"]
                module.given_prefix = (*pair, opening(graph, "prefix", site, x))

            hook = module.register_forward_pre_hook(give, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(module.__dict__.pop, "given_prefix", None)
        yield


@contextmanager
def unipelt(model, kind, graph):
    """Within, a model computes UniPELT by hooks, with a graph's weights."""
    with prefixed(model, graph), ExitStack() as stack:

        def on(module, hook):
            stack.callback(module.register_forward_pre_hook(hook).remove)

        changes = []
        for site, piece in reference.placed(graph, "lora"):

            def update(x, h, site=site, piece=piece):
                delta = 2 * opening(graph, "lora", site, x) * piece(x)
                if kind != "gpt2":
                    return h + delta
                h = h.clone()
                h[..., reference.fused_part(site["role"], site["width"])] += delta
                return h

            if kind == "gpt2":
                module = model.transformer.h[site["layer"]].attn.c_attn
                stack.callback(module.register_forward_hook(
                    lambda _m, args, out, update=update: update(args[0], out)).remove)  # fmt: skip
            else:
                changes.append((site, update))
        stream = {}
        for site, piece in reference.placed(graph, "adapter"):
            place = (site["stack"], site["layer"])
            if kind == "bert":
                module = model.encoder.layer[site["layer"]].output
                on(module, lambda _m, args, place=place: stream.__setitem__(place, args[1]))
            else:
                last = 2 if site["stack"] == "decoder" else 1
                path = BEFORE[kind].format(i=site["layer"], stack=site["stack"], last=last)
                module = model.base_model.get_submodule(path)
                on(module, lambda _m, args, place=place: stream.__setitem__(place, args[0]))

            def adapt(_x, h, site=site, piece=piece, place=place):
                x = h + stream[place]
                if kind == "bert":
                    x = model.encoder.layer[site["layer"]].output.LayerNorm(x)
                return h + opening(graph, "adapter", site, x) * piece(x)

            changes.append((site, adapt))
        stack.enter_context(reference.changed(model, kind, changes))
        yield


@pytest.mark.parametrize("kind", TASKS)
def test_unipelt_equals_its_formula_and_learns(kind):
    model = zoo.build(kind, TASKS[kind])
    graph = peftc.apply("unipelt", zoo.captured(kind, TASKS[kind]), set=SMALL)
    planned = graph.meta["peftc.applied"].plan["parameters"]["inserted"]
    assert planned == sum(p.numel() for _, p in graph.peft_parameters())
    reference.randomise(graph)
    for given in (zoo.inputs(model), zoo.inputs(model, 2, 5, seed=3)):
        with torch.no_grad(), unipelt(model, kind, graph):
            wanted = outputs(model, given)
        torch.testing.assert_close(outputs(graph, given), wanted, **FLOAT)
        assert (wanted - outputs(model, given)).abs().max() > 1e-2
    torch.testing.assert_close(outputs(fold(graph)[0], given), wanted, **FLOAT)
    before = {n: p.detach().clone() for n, p in graph.named_parameters()}
    optimizer = torch.optim.Adam(peftc.trainable(graph).values(), lr=1e-2)
    reference.main_output(graph(**given)).square().mean().backward()
    optimizer.step()
    moved = {n for n, p in graph.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(peftc.trainable(graph))


def latent():
    """A model whose keys are wider than its values: 10 and 6."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=91, hidden_size=24, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, first_k_dense_replace=1, q_lora_rank=None,
        kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=6, pad_token_id=0,
    )  # fmt: skip
    model = AutoModel.from_config(config).eval()
    for weight in (p for p in model.parameters() if p.dim() > 1):
        weight.data.normal_(0.0, 0.2)
    return model


@pytest.mark.parametrize(
    ("name", "tokens", "added"),
    [
        ("llama", 3, (4, 4)),
        ("llama", 11, (10, 10)),
        ("grouped", 3, (4, 4)),
        ("grouped", 11, (10, 10)),
        ("latent", 5, (6, 6)),
        ("latent", 7, (8, 6)),
        ("latent", 9, (10, 6)),
    ],
)
def test_a_gated_prefix_widens_attention_by_its_tokens_or_by_its_own_width(
    name, tokens, added, monkeypatch
):
    model = latent() if name == "latent" else zoo.build("llama", "causal-lm", layers=1)
    captured = zoo.captured_once
    if name == "grouped":  # the kernel itself lets two heads read one
        monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", lambda *_: True)
        captured = capture
    graph = peftc.apply(gated_prefix(tokens), captured(model))
    (node,) = [n for n in graph.graph.nodes if "scaled_dot_product" in n.name]
    assert node.kwargs.get("enable_gqa", False) == (name == "grouped")
    wide = [a.meta["val"].shape[-1] for a in node.args[:3]]
    width = (10, 10, 6) if name == "latent" else (10, 10, 10)
    assert tuple(a - b for a, b in zip(wide, width, strict=True)) == (added[0], *added)
    reference.randomise(graph)
    pieces = list(peftc.trainable(graph).values())
    for given in (zoo.inputs(model), zoo.inputs(model, 2, 5, seed=3)):
        ours = reference.main_output(graph(**given))
        with prefixed(model, graph):
            theirs = reference.main_output(model(**given))
        torch.testing.assert_close(ours, theirs, **FLOAT)
        assert (theirs - outputs(model, given)).abs().max() > 1e-2
        grads = [torch.autograd.grad(o.square().mean(), pieces) for o in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_what_a_gate_on_a_prefix_costs():
    tokens, rows, length, heads, width, hidden = 3, 2, 40, 4, 10, 24
    base = zoo.captured("llama", "causal-lm", layers=1)
    values = list(torch.ones(2, rows, length, dtype=torch.long))
    plain, behind = (
        flops.flops(peftc.apply(gated_prefix(tokens, compose), base), values)
        for compose in ("attend", None)
    )
    attention = 2 * rows * heads * length * (tokens + length)  # for each feature
    products = 2 * 2 * rows * heads * length * (tokens + 1) * width  # padded by one
    gates = 2 * 2 * rows * length * hidden
    assert behind - plain == 2 * attention * (tokens + 1) + products + gates
    assert behind - plain < 2 * attention * width


@pytest.mark.parametrize("tokens", [4, 13])
def test_attention_that_is_written_out_has_the_same_gate(tokens):
    model = zoo.build("bert")
    model.set_attn_implementation("eager")
    graph = peftc.apply("unipelt", zoo.captured_once(model), set={**SMALL, "tokens": tokens})
    reference.randomise(graph)
    given = zoo.inputs(model)
    with torch.no_grad(), unipelt(model, "bert", graph):
        wanted = outputs(model, given)
    torch.testing.assert_close(outputs(graph, given), wanted, **FLOAT)


@pytest.mark.parametrize("tokens", [3, 11])
@pytest.mark.parametrize(("kind", "target"), [("llama", "onnx"), ("gpt2", "torchscript")])
def test_unipelt_exports(kind, target, tokens, tmp_path):
    base = zoo.captured(kind, TASKS[kind], layers=1)
    graph = peftc.apply("unipelt", base, set={**SMALL, "tokens": tokens})
    reference.randomise(graph)
    peftc.export(graph, target, tmp_path / "out")
    assert peftc.verify(graph, tmp_path / "out").ok


def test_a_causal_model_does_not_look_ahead_through_its_gates():
    graph = peftc.apply("unipelt", zoo.captured("llama", "causal-lm"), set=SMALL)
    reference.randomise(graph)
    ids = torch.arange(2 * 8).reshape(2, 8) + 4
    other = ids.clone()
    other[:, 5:] += 20
    found = [
        outputs(graph, {"input_ids": i, "attention_mask": torch.ones_like(i)}) for i in (ids, other)
    ]
    torch.testing.assert_close(found[0][:, :5], found[1][:, :5], **FLOAT)
    assert (found[0][:, 5:] - found[1][:, 5:]).abs().max() > 1e-2
