"""What operations do, against ATen's own tags and schemas, and what captured graphs hold."""

from __future__ import annotations

import operator

import pytest
import torch
import zoo
from torch import Tensor, fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from peftc.capture.ops import TABLE, Trait, base_name, has, of, traits

aten = torch.ops.aten


def overloads(packet: OpOverloadPacket) -> list[OpOverload]:
    """The functional overloads of an operation."""
    found = [getattr(packet, name) for name in packet.overloads()]
    return [o for o in found if not o._schema.is_mutable and o._schema.name.startswith("aten::")]


OVERLOADS = [o for t in TABLE if isinstance(t, OpOverloadPacket) for o in overloads(t)]


def tensors(overload: OpOverload) -> list[str]:
    """The names of the tensors that an operation takes."""
    return [a.name for a in overload._schema.arguments if "Tensor" in str(a.type)]


X = torch.linspace(0.1, 0.9, 15).reshape(3, 5)
MASK = X > 0.5


@pytest.mark.parametrize(
    ("operation", "more"),
    [
        *[(getattr(aten, n).Tensor, (X,)) for n in ("add", "sub", "mul", "div", "le", "gt", "ne")],
        *[(getattr(aten, n).default, ()) for n in ("gelu", "silu", "tanh", "erf", "exp", "cos")],
        (aten.multiply.Tensor, (X,)),
        (aten.masked_fill.Scalar, (MASK, 2.0)),
        (aten.masked_fill.Tensor, (MASK, torch.tensor(2.0))),
        (aten.pow.Tensor_Scalar, (2,)),
        (aten.max.other, (X,)),
        (aten.clamp.default, (0.2, 0.8)),
    ],
    ids=str,
)
def test_what_acts_on_single_elements_changes_one_where_one_changes(operation, more):
    other = X.clone()
    other[1, 2] = 7.0
    apart = operation(other, *more) != operation(X, *more)
    assert of(operation) & Trait.ELEMENTWISE
    assert not apart[torch.arange(3) != 1].any()
    assert not apart[:, torch.arange(5) != 2].any()


def test_what_sums_or_moves_is_not_what_aten_calls_pointwise():
    computing = Trait.PRODUCT | Trait.SOFTMAX | Trait.ATTENTION | Trait.CONVOLUTION | Trait.SCAN
    for overload in OVERLOADS:
        if of(overload) & (computing | Trait.JOIN | Trait.PART | Trait.TRIANGLE | Trait.REPEAT):
            assert torch.Tag.pointwise not in overload.tags, overload


def test_what_is_made_of_constants_takes_no_tensor():
    for overload in OVERLOADS:
        if of(overload) & Trait.FACTORY and tensors(overload):
            assert str(overload) == "aten.full.names", overload
        if of(overload) & Trait.BLANK:
            assert tensors(overload)[0] == "self"


def test_views_are_shapes_parts_or_expansions():
    for overload in OVERLOADS:
        if of(overload) & Trait.ALIAS:
            assert of(overload) & (Trait.SHAPE | Trait.PART | Trait.EXPAND), overload


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (aten.reshape.default, ([5, 6],)),
        (aten.permute.default, ([2, 0, 1],)),
        (aten.transpose.int, (0, 2)),
        (aten.unsqueeze.default, (1,)),
        (aten.squeeze.default, ()),
        (aten.clone.default, ()),
        (aten.alias.default, ()),
        (aten.detach.default, ()),
    ],
)
def test_a_shape_has_every_element_once(operation, args):
    x = torch.arange(30.0).reshape(2, 3, 5)
    assert of(operation) & Trait.SHAPE
    assert sorted(operation(x, *args).flatten().tolist()) == sorted(x.flatten().tolist())


def parts(value: object) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (aten.slice.Tensor, (1, 0, 2)),
        (aten.select.int, (2, 3)),
        (aten.split.Tensor, (2, 2)),
        (aten.split_with_sizes.default, ([1, 4], 2)),
        (aten.chunk.default, (2, 2)),
        (aten.unbind.int, (1,)),
        (operator.getitem, (0,)),
    ],
)
def test_a_part_has_no_element_twice_and_needs_no_memory(operation, args):
    x = torch.arange(30.0).reshape(2, 3, 5)
    found = parts(operation(x, *args))
    numbers = [n for part in found for n in part.flatten().tolist()]
    assert of(operation) & Trait.PART
    assert len(set(numbers)) == len(numbers) <= 30
    assert of(operation) & Trait.ALIAS
    assert all(p.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for p in found)


def test_one_name_may_be_two_operations():
    assert of(aten.max.dim) & Trait.REDUCTION
    assert of(aten.max.other) == Trait.ELEMENTWISE
    assert of(aten.linear.default) & Trait.PROJECTION
    assert not of(aten.baddbmm.default) & Trait.PROJECTION
    assert of(aten.clone.default) == Trait.SHAPE  # with memory of its own
    assert of(torch.sin) == Trait.NONE


def test_a_dropout_is_a_module_of_the_graph():
    root = nn.Module()
    root.drop, root.other = nn.Dropout(0.5), nn.Linear(2, 3)
    graph = fx.Graph()
    x = graph.placeholder("x")
    drop = graph.call_module("drop", (x,))
    other = graph.call_module("other", (drop,))
    graph.output(other)
    program = fx.GraphModule(root, graph)
    found = {n.name: traits(n) for n in program.graph.nodes}
    assert found == {
        "x": Trait.NONE,
        "drop": Trait.DROPOUT,
        "other": Trait.NONE,
        "output": Trait.NONE,
    }
    assert [base_name(n) for n in program.graph.nodes] == [""] * 4


# What `normalise` writes in another way; a list that names one of these names nothing.
GONE = {"view", "_unsafe_view", "contiguous", "to", "type_as", "copy", "lift_fresh_copy", "detach_",
        "einsum", "flatten", "narrow", "mT"}  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_captured_graph_is_made_of_operations_with_traits(kind):
    calls = [n for n in zoo.captured(kind).graph.nodes if n.op == "call_function"]
    assert not GONE & {base_name(n) for n in calls}
    with_data = [n for n in calls if isinstance(n.meta["val"], Tensor | list | tuple)]
    strange = {base_name(n) for n in with_data if traits(n) == Trait.NONE}
    assert not strange
    assert any(has(n, Trait.PROJECTION) for n in calls)
