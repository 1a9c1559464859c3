"""Methods written as YAML only: equal to their formula by hooks, on four families, exported."""

from __future__ import annotations

import pytest
import torch
import zoo
from tolerances import PARITY
from torch.nn import functional

import peftc
from peftc.rewrite.pipeline import fold

DEFAULTS = {
    # He et al. 2022: an adapter beside the feed-forward block, from steps alone.
    "parallel": {
        "at": "ffn.out", "form": "parallel", "compose": {"add": {"scale": 4.0}},
        "delta": {"pipe": [
            {"linear": {"out": 5}}, {"act": "relu"}, {"linear": {"out": "same", "init": "zeros"}},
        ]},
    },
    # Karimi Mahabadi et al. 2021, "Compacter": low-rank weights inside an adapter.
    "compacter": {
        "at": ["attn.out", "ffn.out"],
        "delta": {"pipe": [
            {"linear": {"out": 6, "rank": 2}}, {"act": "gelu"},
            {"linear": {"out": "same", "rank": 2, "init": "zeros"}},
        ]},
    },
    # LayerNorms before and behind the bottleneck.
    "normed": {
        "at": "ffn.out",
        "delta": {"pipe": [
            {"norm": "layer"}, {"linear": {"out": 5}}, {"act": "silu"},
            {"linear": {"out": "same"}}, {"norm": "layer"}, {"scale": {"init": 0}},
        ]},
    },
    # Nobody's: neighbours seen by a convolution, the result let in by a gate.
    "gated_conv": {
        "at": "block.out", "compose": {"gate": {"init": 0.0}},
        "delta": {"pipe": [
            {"norm": "rms"}, {"linear": {"out": 8}}, {"conv1d": {"kernel": 3, "groups": 8}},
            {"act": "gelu"}, {"linear": {"out": "same"}},
        ]},
    },
    # Nobody's either: two residual steps at a narrow width, earlier tokens only.
    "narrow_residual": {
        "at": "attn.out",
        "delta": {"pipe": [
            {"linear": {"out": 6}},
            {"residual": [{"conv1d": {"kernel": 2, "pad": "causal"}}, {"act": "tanh"}]},
            {"residual": [{"norm": "layer"}, {"linear": {"out": 6}}]},
            {"dropout": 0.1}, {"linear": {"out": "same", "init": "zeros"}},
        ]},
    },
}  # fmt: skip


def spec_of(name):
    """The spec of one method; "mam" is He et al.'s: a prefix, and the parallel adapter of steps."""
    insert = [{"id": "a", **DEFAULTS["parallel" if name == "mam" else name]}]
    if name == "mam":
        reparam = {"hidden": 7, "act": "tanh"}
        insert.append(
            {"id": "p", "at": "attn.kv", "delta": {"prefix": {"tokens": 3, "reparam": reparam}}}
        )
    return {"peftc": 1, "name": name, "insert": insert}


def task_of(kind):
    """A task that the family has."""
    return "seq2seq-lm" if kind == "t5" else "causal-lm" if kind != "bert" else "base"


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("name", [*DEFAULTS, "mam"])
def test_a_method_of_steps_starts_as_the_model_and_learns(name, kind):
    task = task_of(kind)
    model = zoo.model(kind, task)
    given = zoo.inputs(model)
    graph = peftc.apply(spec_of(name), zoo.captured(kind, task))
    with torch.no_grad():  # with gradients attention may take another kernel
        start = torch.equal(next(iter(graph(**given).values())), model(**given)[0])
    assert start == (name != "mam")  # a prefix is seen from the first step
    before = {n: p.detach().clone() for n, p in graph.named_parameters()}
    optimizer = torch.optim.Adam(peftc.trainable(graph).values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        next(iter(graph(**given).values())).square().mean().backward()
        optimizer.step()
    moved = {n for n, p in graph.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(peftc.trainable(graph))


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("parallel", "bert", "torchscript"),
        ("mam", "gpt2", "torchscript"),
        ("compacter", "gpt2", "torchscript"),
        ("normed", "t5", "torchscript"),
        ("gated_conv", "llama", "onnx"),
        ("narrow_residual", "llama", "onnx"),
        ("narrow_residual", "bert", "torchscript"),
    ],
)
def test_a_method_of_steps_exports(name, kind, target, tmp_path):
    graph = randomised(peftc.apply(spec_of(name), zoo.captured(kind, task_of(kind), layers=1)))
    peftc.export(graph, target, tmp_path / "out")
    assert peftc.verify(graph, tmp_path / "out").ok


def randomised(graph, std=0.3):
    """The graph with random pieces."""
    generator = torch.Generator().manual_seed(5)
    for _, p in graph.peft_parameters():
        p.data.add_(std * torch.randn(p.shape, generator=generator))
    return graph


def test_steps_equal_their_formula_by_a_hook():
    model = zoo.model("bert")
    given = zoo.inputs(model)
    graph = randomised(peftc.apply(spec_of("gated_conv"), zoo.captured("bert")))
    w = {n: p.detach() for n, p in graph.peft_parameters()}
    handles = []
    for k, layer in enumerate(model.encoder.layer):
        p = f"peft.a.layer{k}_block_out"

        def hook(_module, _args, out, p=p):
            h = out[0] if isinstance(out, tuple) else out
            x = w[f"{p}.steps.0.weight"] * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
            x = functional.linear(x, w[f"{p}.steps.1.weight"], w[f"{p}.steps.1.bias"])
            x = functional.conv1d(
                x.transpose(1, 2), w[f"{p}.steps.2.conv.weight"], w[f"{p}.steps.2.conv.bias"],
                padding=1, groups=8,
            ).transpose(1, 2)  # fmt: skip
            x = functional.gelu(x)
            x = functional.linear(x, w[f"{p}.steps.4.weight"], w[f"{p}.steps.4.bias"])
            g = w[f"{p}_gate.g"]
            changed = (1 - g) * h + g * x
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        handles.append(layer.register_forward_hook(hook))
    try:
        wanted = model(**given)[0]
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(graph(**given)[0], wanted, **PARITY[torch.float32])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"linear": {"out": 8}}], "the pipe ends with 8 features, the site has 24"),
        (
            [{"linear": {"out": 8}}, {"conv1d": {"kernel": 3, "groups": 3}}],
            "conv1d: 3 groups do not divide 8 and 8",
        ),
        (
            [{"residual": [{"linear": {"out": 7}}]}],
            "residual: its steps give 7 features for 24",
        ),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps, message):
    spec = {"peftc": 1, "name": "x", "insert": [
        {"id": "a", "at": "ffn.out", "delta": {"pipe": steps}}]}  # fmt: skip
    with pytest.raises(peftc.PeftcError) as refusal:
        peftc.plan(spec, zoo.captured("bert"))
    assert f"error[E112]: {message}" in str(refusal.value)
    assert "= note: at ffn.out, encoder.layer.0.output.dense" in str(refusal.value)


DORA = {
    "peftc": 1,
    "name": "dora",
    "insert": [
        {"id": "d", "at": ["attn.q", "attn.v", "ffn.down"],
         "delta": {"dora": {"rank": 3, "scale": 2}}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_dora_starts_as_the_model_and_folds_into_it(kind):
    task = task_of(kind)
    model = zoo.model(kind, task)
    given = zoo.inputs(model)
    graph = peftc.apply(DORA, zoo.captured(kind, task))
    with torch.no_grad():
        assert torch.equal(next(iter(graph(**given).values())), model(**given)[0])
    randomised(graph)
    folded, _ = fold(graph)
    assert not list(folded.peft_parameters())
    torch.testing.assert_close(
        next(iter(folded(**given).values())),
        next(iter(graph(**given).values())),
        **PARITY[torch.float32],
    )


def test_dora_equals_its_formula_by_hooks():
    model = zoo.model("llama", "causal-lm")
    given = zoo.inputs(model)
    graph = randomised(peftc.apply(DORA, zoo.captured("llama", "causal-lm")))
    w = {n: p.detach() for n, p in graph.peft_parameters()}
    handles = []
    for k, layer in enumerate(model.model.layers):
        for role, module in (
            ("attn_q", layer.self_attn.q_proj),
            ("attn_v", layer.self_attn.v_proj),
            ("ffn_down", layer.mlp.down_proj),
        ):
            p = f"peft.d.layer{k}_{role}"

            def hook(module, args, _out, p=p):
                direction = module.weight + 2 * w[f"{p}.B"] @ w[f"{p}.A"]
                weight = w[f"{p}.m"][:, None] * direction / direction.norm(dim=1, keepdim=True)
                return functional.linear(args[0], weight, module.bias)

            handles.append(module.register_forward_hook(hook))
    try:
        wanted = model(**given)[0]
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(graph(**given)["logits"], wanted, **PARITY[torch.float32])


def test_only_the_insertions_that_export_names_are_merged(tmp_path):
    spec = {**DORA, "insert": [
        {"id": "q", "at": "attn.q", "delta": {"low_rank": {"rank": 3}}},
        {"id": "v", "at": "attn.v", "delta": {"dora": {"rank": 3}}},
        {"id": "f", "at": "ffn.act", "delta": "vector"},
    ], "export": {"fold": ["v"]}}  # fmt: skip
    graph = randomised(peftc.apply(spec, zoo.captured("bert")))
    exported = peftc.export(graph, "torchscript", tmp_path / "out")
    kept = {n.split(".")[1] for n in exported.facts["peft"]}
    assert kept == {"q", "f"}
    assert peftc.verify(graph, tmp_path / "out").ok
