"""The graph as text, and its fingerprint, which is the same on every device."""

from __future__ import annotations

import pytest
import torch
import zoo

from peftc.capture.listing import fingerprint, listing

aten = torch.ops.aten


@pytest.fixture
def program():
    """A graph whose nodes may be changed."""
    return zoo.captured("bert", layers=1).clone()


def first(program, target):
    """The first node of an operation."""
    return next(n for n in program.graph.nodes if n.target is target)


def test_a_graph_of_another_device_has_the_same_fingerprint(program):
    """There are other devices in it, other copies, and other numbers in the names."""
    before, text = fingerprint(program), listing(program)
    reshape = first(program, aten.reshape.default)
    with program.graph.inserting_before(reshape):
        copy = program.graph.call_function(aten.clone.default, (reshape.args[0],))
    reshape.replace_input_with(reshape.args[0], copy)
    node = first(program, aten.arange.default)
    node.kwargs = {**node.kwargs, "device": torch.device("cuda:1")}
    for one in program.graph.nodes:
        if one.target is aten.linear.default:
            one.name = f"{one.name}_7"
    assert listing(program) != text
    assert "device=cuda:1" in listing(program)
    assert fingerprint(program) == before


def test_another_operation_order_weight_or_number_has_another(program):
    found = {fingerprint(program)}
    node = first(program, aten.gelu.default)
    node.target = aten.relu.default
    found.add(fingerprint(program))
    add = first(program, aten.add.Tensor)
    add.args = (add.args[1], add.args[0])
    found.add(fingerprint(program))
    norm = first(program, aten.layer_norm.default)
    norm.args = (*norm.args[:4], 1e-3, *norm.args[5:])
    found.add(fingerprint(program))
    linear = first(program, aten.linear.default)
    weight = linear.args[1]
    weight.target = weight.target.replace("query", "key")
    found.add(fingerprint(program))
    assert len(found) == 5
