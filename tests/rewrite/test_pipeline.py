"""The pipeline's own checks, each with a pass that must fail it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import zoo

from peftc.capture.values import refresh
from peftc.ground.diagnostics import PeftcError
from peftc.passes.base import Pass, call
from peftc.rewrite.pipeline import run


@dataclass
class Does(Pass):
    """A pass made of a function."""

    work: Callable[[Any], object]

    def run(self, program):
        self.work(program)


def program():
    return zoo.captured("bert", "base", layers=1).clone()


def raising(cause):
    def work(_program):
        raise cause

    return work


def unvalued(program):
    program.graph.output_node().args[0][0].meta.pop("val")


def fewer_outputs(program):
    node = program.graph.output_node()
    node.args = (node.args[0][:1],)


def other_signature(program):
    fewer_outputs(program)
    program.signature = replace(program.signature, outputs=program.signature.outputs[:1])


def shaped(program):
    node = next(iter(program.graph.nodes))
    node.meta["val"] = torch.empty(2, 7, device="meta")


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (unvalued, "nodes without a value"),
        (fewer_outputs, "no longer has its signature"),
        (other_signature, "changed the signature that it promises to keep"),
        (shaped, "lost its free axes batch, sequence"),
    ],
)
def test_a_pass_that_breaks_the_graph_is_found(work, message):
    with pytest.raises(RuntimeError, match=message):
        run(program(), [Does(work)])


@pytest.mark.parametrize("cause", [RuntimeError("shape mismatch"), IndexError("no such axis")])
def test_what_a_pass_does_wrong_is_not_told_as_a_limit_of_the_model(cause):
    with pytest.raises(type(cause)) as caught:
        run(program(), [Does(raising(cause))])
    assert caught.value is cause


def test_a_want_of_memory_in_a_pass_is_told_as_one():
    cause = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    with pytest.raises(PeftcError) as caught:
        run(program(), [Does(raising(cause))])
    assert [d.code for d in caught.value.diagnostics] == ["E505"]


def test_a_node_of_the_model_that_takes_no_other_size_is_a_limit_of_the_model():
    def widen(p):
        norm = next(n for n in p.graph.nodes if n.target is torch.ops.aten.layer_norm.default)
        with p.graph.inserting_before(norm):
            wide = call(p, torch.ops.aten.constant_pad_nd.default, (norm.args[0], [0, 3]), "")
        norm.replace_input_with(norm.args[0], wide)
        norm.meta["stale"] = True
        refresh(p)

    with pytest.raises(PeftcError) as caught:
        run(program(), [Does(widen)])
    [found] = caught.value.diagnostics
    assert found.code == "E111"
    assert found.message == "Does: the graph of BertModel does not allow it"
    assert "in embeddings.LayerNorm, `layer_norm" in found.notes[0]


def test_a_pass_that_changes_nothing_is_reported_so():
    [report] = run(program(), [Does(lambda _: None)])
    assert (report.name, report.difference) == ("Does", ())
