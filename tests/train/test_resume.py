"""A run that was interrupted and resumed ends as one that was not."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import zoo
from safetensors.torch import load_file

import peftc
from peftc.ground.diagnostics import PeftcError
from peftc.train import Rows, train
from peftc.train.trainer import check_checkpoint

FAMILY = ("bert", "sequence-classification")
STEPS = 10


def rows() -> Rows:
    """Rows of different lengths, not a whole number of batches."""
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(4, 90, (4 + k % 5,), generator=generator).tolist() for k in range(12)]
    return Rows(
        [
            {"input_ids": i, "attention_mask": [1] * len(i), "labels": k % 5}
            for k, i in enumerate(ids)
        ]
    )


def run(
    folder, spec="houlsby", stop=None, kill=None, resume=False, settings=(), dtype=torch.float32
):
    """Train; Ctrl-C at step `stop`, or fail at step `kill`."""
    half = dtype != torch.float32
    base = zoo.build(*FAMILY, layers=1).to(dtype) if half else zoo.captured(*FAMILY)
    graph = peftc.apply(spec, base, set=dict(settings))

    def watch(moment):
        if moment.event == "step" and moment.step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        if moment.event == "step" and moment.step == kill:
            raise ValueError("the machine went away")

    result = train(
        graph, rows(), pad=0, steps=STEPS, batch=5, lr=1e-2, seed=4, watch=watch,
        held_out=rows(), every=2, folder=folder, resume=resume,
    )  # fmt: skip
    return graph, result


# A prefix still has its MLP; dropout and the order of rows come from the saved random state.
@pytest.mark.parametrize(
    ("spec", "settings"), [("lora", {"rank": 3}), ("prefix", {"tokens": 3, "hidden": 7})]
)
def test_resumed_equals_uninterrupted(tmp_path, spec, settings):
    whole, expected = run(tmp_path / "whole", spec, settings=settings)
    _, half = run(tmp_path / "half", spec, stop=5, settings=settings)
    assert (half.interrupted, half.steps) == (True, 5)
    again, found = run(tmp_path / "half", spec, resume=True, settings=settings)
    assert found == expected
    assert expected.best is not None
    for name, parameter in peftc.trainable(whole).items():
        assert torch.equal(parameter, peftc.trainable(again)[name]), name


def test_resumed_equals_uninterrupted_in_half_precision(tmp_path):
    """The optimiser's float32 copies are in the checkpoint: rounded ones would go another way."""
    whole, expected = run(tmp_path / "whole", dtype=torch.bfloat16)
    run(tmp_path / "half", stop=5, dtype=torch.bfloat16)
    again, found = run(tmp_path / "half", resume=True, dtype=torch.bfloat16)
    assert found == expected
    for name, parameter in peftc.trainable(whole).items():
        assert torch.equal(parameter, peftc.trainable(again)[name]), name


def test_a_crash_resumes_from_the_last_checkpoint(tmp_path):
    _, expected = run(tmp_path / "whole")
    with pytest.raises(ValueError, match="the machine went away"):
        run(tmp_path / "half", kill=5)
    _, found = run(tmp_path / "half", resume=True)
    assert found.losses == expected.losses
    assert found.best == expected.best


def test_checkpoints_hold_what_is_trained(tmp_path):
    graph, _ = run(tmp_path)
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    assert set(load_file(checkpoint / "peft.safetensors")) == set(peftc.trainable(graph))
    assert not (checkpoint / "model.safetensors").exists()
    assert not (checkpoint / "training_args.bin").exists()


def test_the_graph_ends_as_it_was_at_its_best(tmp_path):
    _, result = run(tmp_path)
    step, metric, value = result.best
    assert dict(result.evaluations)[step][metric] == value
    assert value == max(m[metric] for _, m in result.evaluations)


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run(tmp_path, stop=2)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_to_resume(tmp_path):
    with pytest.raises(PeftcError, match=r"error\[E305\].*has no checkpoint to go on from"):
        run(tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path, stop=5)
    newest = max(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for name in ("optimizer.pt", "trainer_state.json", "peft.safetensors"):
        data = (newest / name).read_bytes()
        (newest / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(PeftcError, match=rf"error\[E303\]: .*{name} is damaged"):
            check_checkpoint(newest)
        if name == "optimizer.pt":
            with pytest.raises(PeftcError, match=r"error\[E303\]"):
                run(tmp_path, resume=True)
        (newest / name).write_bytes(data)
    check_checkpoint(newest)
