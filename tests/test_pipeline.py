"""The pipeline's own checks, each with a pass that must fail it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import zoo

from peftc.diagnostics import PeftcError
from peftc.passes.base import Pass
from peftc.pipeline import run


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


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (RuntimeError("shape mismatch"), "E111"),
        (IndexError("no such axis"), "E111"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "E505"),
    ],
)
def test_what_a_graph_does_not_allow_is_told_from_what_memory_does_not(cause, code):
    with pytest.raises(PeftcError) as caught:
        run(program(), [Does(raising(cause))])
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_a_pass_that_changes_nothing_is_reported_so():
    [report] = run(program(), [Does(lambda _: None)])
    assert (report.name, report.difference) == ("Does", ())
