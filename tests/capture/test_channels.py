"""Streams that stand channel-first, for convolutions that are linears over channels."""

from __future__ import annotations

import re

import pytest
import torch
from torch import fx, nn
from transformers import SqueezeBertConfig, SqueezeBertModel

import peftc
from peftc.capture.channels import channels_last
from peftc.ground.diagnostics import PeftcError

BEFORE = """
%first = permute(%x, [0, 2, 1])
%conv1d = conv1d(%first, %w, %b)
%gelu = gelu(%conv1d)
%conv1d_1 = conv1d(%gelu, %w, %b)
%add = add(%conv1d_1, %first)
%last = permute(%add, [0, 2, 1])
""".strip()

AFTER = """
%first = permute(%x, [0, 2, 1])
%conv1d = conv1d(%first, %w, %b)
%permute = permute(%conv1d, [0, 2, 1])
%permute_1 = permute(%permute, [0, 2, 1])
%gelu = gelu(%permute_1)
%permute_2 = permute(%gelu, [0, 2, 1])
%permute_3 = permute(%permute_2, [0, 2, 1])
%conv1d_1 = conv1d(%permute_3, %w, %b)
%permute_4 = permute(%conv1d_1, [0, 2, 1])
%add_1 = add(%permute_4, %x)
""".strip()


def printed(graph: fx.Graph) -> str:
    """The calls of a graph, one a line."""

    def text(a: object) -> str:
        return f"%{a}" if isinstance(a, fx.Node) else str(a)

    lines = "\n".join(
        f"%{n} = {n.target._schema.name.split('::')[1]}({', '.join(map(text, n.args))})"
        for n in graph.nodes
        if n.op == "call_function"
    )
    return lines.replace("_default", "").replace("add_tensor", "add")


def test_a_channel_first_stream_is_turned_and_computes_the_same_bits():
    aten, graph = torch.ops.aten, fx.Graph()
    values = {
        "x": torch.randn(2, 5, 6), "w": torch.randn(6, 6, 1), "b": torch.randn(6),
    }  # fmt: skip
    x, w, b = (graph.placeholder(n) for n in values)
    first = graph.create_node(
        "call_function", aten.permute.default, (x, [0, 2, 1]), name="first"
    )  # fmt: skip
    one = graph.call_function(aten.conv1d.default, (first, w, b))
    bent = graph.call_function(aten.gelu.default, (one,))
    two = graph.call_function(aten.conv1d.default, (bent, w, b))
    added = graph.call_function(aten.add.Tensor, (two, first))
    last = graph.create_node("call_function", aten.permute.default, (added, [0, 2, 1]), name="last")
    graph.output(last)
    assert printed(graph) == BEFORE
    known: dict[fx.Node, torch.Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node):
            known[n] = super().run_node(n)
            return known[n]

    want = Recorder(nn.Module(), graph=graph).run(*values.values())
    for node, value in known.items():
        node.meta = {"val": value, "module": ""}
    channels_last(graph)
    assert printed(graph) == AFTER
    assert torch.equal(fx.Interpreter(nn.Module(), graph=graph).run(*values.values()), want)


@pytest.fixture(scope="module")
def squeezebert() -> SqueezeBertModel:
    """A model whose stream is channel-first, with convolutions in groups."""
    torch.manual_seed(0)
    config = SqueezeBertConfig(
        vocab_size=60, hidden_size=24, embedding_size=24, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=40, max_position_embeddings=32,
    )  # fmt: skip
    return SqueezeBertModel(config).eval()


def test_adapters_in_it_equal_hooks_that_turn_its_channels(squeezebert):
    graph = peftc.apply("houlsby", squeezebert, set={"dim": 5})
    pieces: dict[str, nn.Module] = {}
    generator = torch.Generator().manual_seed(1)
    for _, p in graph.peft_parameters():
        p.data.add_(torch.randn(p.shape, generator=generator) * 0.3)
    for name, module in graph.named_modules():
        if name.startswith("peft.") and hasattr(module, "down"):
            pieces[name] = module
    assert len(pieces) == 4
    handles = []
    for name, piece in pieces.items():
        layer = squeezebert.encoder.layers[int(re.findall(r"\d+", name)[0])]
        part = layer.post_attention if "attn" in name else layer.output

        def hook(_module, _args, out, piece=piece):
            h = out.transpose(1, 2)
            return (h + piece(h)).transpose(1, 2)

        handles.append(part.conv1d.register_forward_hook(hook))
    for batch, length in ((2, 7), (3, 11)):
        ids = torch.randint(1, 60, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, length - 2 :] = 0
        want = squeezebert(input_ids=ids, attention_mask=mask).last_hidden_state
        have = graph(input_ids=ids, attention_mask=mask).last_hidden_state
        assert (have - want)[mask.bool()].abs().max() < 1e-5
    for handle in handles:
        handle.remove()
    plain = squeezebert(input_ids=ids, attention_mask=mask).last_hidden_state
    assert (plain - want).abs().max() > 0.1


def test_dora_has_no_matrix_there(squeezebert):
    insert = [{"id": "d", "at": "attn.q", "delta": {"dora": {"rank": 2}}}]
    with pytest.raises(PeftcError) as refused:
        peftc.plan({"peftc": 1, "name": "x", "insert": insert}, squeezebert)
    assert "error[E109]: `dora` needs a linear; `encoder.layers.0.attention.query` is none" in str(
        refused.value
    )
