"""Gates, constant and reading: equal to their formula by hooks and by attention written out."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
import reference
import torch
import zoo
from tolerances import PARITY
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import peftc
from peftc.pipeline import fold

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


def gated(compose, at="attn.out", delta=None):
    """A spec of one gated insertion."""
    entry = {"id": "a", "at": at, "delta": delta or {"bottleneck": {"dim": 5}}, "compose": compose}
    return {"peftc": 1, "name": "gated", "insert": [entry]}


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
        prefix_k, prefix_v, g = module.given_prefix
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
    ALL_ATTENTION_FUNCTIONS.register("gated", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("gated", eager_mask)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("gated")
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def unipelt(model, kind, graph):
    """Within, a model computes UniPELT by hooks, with a graph's weights."""
    with ExitStack() as stack:

        def on(module, hook, **options):
            stack.callback(module.register_forward_pre_hook(hook, **options).remove)

        stack.enter_context(written_out(model))
        keys = graph.get_submodule("peft.prefix.reparam")()
        for n, (site, prefix) in enumerate(reference.placed(graph, "prefix")):
            module = model.get_submodule(site["module"])
            pair = [p.repeat_interleave(prefix.repeats, 0) for p in keys[2 * n : 2 * n + 2]]

            def give(module, args, kwargs, site=site, pair=pair):
                x = args[0] if args else kwargs["hidden_states"]
                module.given_prefix = (*pair, opening(graph, "prefix", site, x))

            on(module, give, with_kwargs=True)
            stack.callback(delattr, module, "given_prefix")
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


@pytest.mark.parametrize(("kind", "target"), [("llama", "onnx"), ("gpt2", "torchscript")])
def test_unipelt_exports(kind, target, tmp_path):
    graph = peftc.apply("unipelt", zoo.captured(kind, TASKS[kind], layers=1), set=SMALL)
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
