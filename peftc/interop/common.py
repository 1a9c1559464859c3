"""What all methods of PEFT share: names of options, of tensors, of tasks."""

from __future__ import annotations

from peftc.ground.diagnostics import error

FORMS = "LoRA, DoRA, IA3, prefix tuning and prompt tuning"

PREFIX = "base_model.model."  # of the tensors of methods that change modules
PROMPT_PREFIX = "base_model."  # of the heads saved beside a prompt or prefix
COMMON = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type", "target_modules", "exclude_modules", "modules_to_save",
)  # fmt: skip
# PEFT's task types, and what `--task` calls them.
TASKS = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "FEATURE_EXTRACTION": "feature-extraction",
}
# The names that transformers gives losses, by task type.
LOSSES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
}


def base_name(key: str, prefix: str) -> str:
    """The state_dict name of a base weight: without PEFT's prefix and wrapper."""
    return key.removeprefix(prefix).replace(".base_layer.", ".")


def cannot(why: str, *help: str) -> Exception:
    """E408: PEFT has no form of the graph."""
    return error("E408", f"PEFT cannot express this graph: {why}", help=(*help, f"it has {FORMS}"))
