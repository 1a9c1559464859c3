"""The loss of a captured model, as transformers computes it for the uncaptured one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peftc.ground.diagnostics import error

LABELS = ("labels", "start_positions", "end_positions")
IGNORED = -100  # labels with this value do not count


def loss_of(output: Any, labels: Mapping[str, Tensor], signature: Any) -> Tensor:
    """Mean loss of `output` against `labels`, by the loss name that transformers gave the model.

    Raises:
        PeftcError: E106 where the model has no head, so no loss.
    """
    config = signature.config
    if signature.input("decoder_input_ids") is not None and signature.loss in (
        None,
        "ForConditionalGeneration",
        "ForSeq2SeqLM",
        "ForCausalLM",
        "ForMaskedLM",
    ):
        logits = output["logits"]
        return cross_entropy(logits.flatten(0, 1), labels["labels"].flatten(), ignore_index=IGNORED)
    from transformers.loss.loss_utils import LOSS_MAPPING

    function = LOSS_MAPPING.get(signature.loss or "")
    if function is None:
        raise error(
            "E106",
            f"{signature.model_class} has no head, so labels have no loss",
            help=("load the model with --task, for example --task sequence-classification",),
        )
    if signature.loss == "ForQuestionAnswering":
        return function(output["start_logits"], output["end_logits"], **labels)
    logits = output["logits"]
    if signature.loss in ("ForCausalLM", "ForMaskedLM"):
        return function(logits, labels["labels"], vocab_size=logits.shape[-1])
    return function(labels=labels["labels"], **{_logits_name(function): logits}, config=config)


def decoder_inputs(inputs: dict[str, Any], labels: Tensor, config: Any) -> None:
    """Fill absent `decoder_input_ids` with `labels` shifted right, as the models do."""
    if inputs.get("decoder_input_ids") is not None:
        return
    start, pad = config.decoder_start_token_id, config.pad_token_id
    if start is None or pad is None:
        raise error(
            "E106",
            "labels cannot become decoder inputs: the config has no decoder_start_token_id",
            help=("give decoder_input_ids beside the labels",),
        )
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    inputs["decoder_input_ids"] = shifted.masked_fill(shifted == IGNORED, pad)


def _logits_name(function: Any) -> str:
    return next(n for n in inspect.signature(function).parameters if n.endswith("logits"))
