"""One row -> the tokens that a task reads, and its labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftc.capture.loss import IGNORED
from peftc.diagnostics import error
from peftc.train.data import Task, label_number


def encode_sequence(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A text, or a pair, and its label."""
    pair = [row["text_pair"]] if "text_pair" in row else []
    found = dict(tokenizer(row["text"], *pair, truncation=True, max_length=task.within(length)))
    return {**found, "labels": label_number(row["label"], task)}


def encode_tokens(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """Words with tags: a word's first piece has its tag, the others do not count."""
    longest = task.within(length)
    found = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=longest)
    labels, last = [], None
    for word in found.word_ids():
        fresh = word is not None and word != last
        labels.append(label_number(row["tags"][word], task) if fresh else IGNORED)
        last = word
    return {**dict(found), "labels": labels}


def encode_text(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A text whose labels are its own tokens; the loss shifts them."""
    found = dict(tokenizer(row["text"], truncation=True, max_length=task.within(length)))
    return {**found, "labels": list(found["input_ids"])}


def encode_pair(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A source, and the target's tokens as labels."""
    found = dict(tokenizer(row["source"], truncation=True, max_length=task.within(length)))
    longest = task.within(length, "decoder_sequence")
    target = tokenizer(text_target=row["target"], truncation=True, max_length=longest)
    return {**found, "labels": list(target["input_ids"])}


def encode_question(
    row: dict[str, Any], task: Task, tokenizer: Any, length: int
) -> list[dict[str, Any]]:
    """A question with its context, in windows that overlap by a third (Devlin et al. 2019).

    The labels are the first and the last token of the answer; in a window that does not have all
    of it, and where there is none, both are the first token of the window.

    Raises:
        PeftcError: E082 for a question that leaves the context no room.
    """
    length = task.within(length)
    room = length - len(tokenizer(row["question"], "")["input_ids"])
    if room < 2:
        message = f"the question `{row['question'][:40]}` leaves its context no room in {length}"
        raise error("E082", message, help=("longer texts: --length 384",))
    found = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=length,
        stride=room // 3, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    answers = row["answers"]
    windows = []
    for k, places in enumerate(found["offset_mapping"]):
        second = [part == 1 for part in found.sequence_ids(k)]
        offsets = [p if own else None for p, own in zip(places, second, strict=True)]
        start, end = span_of(answers, offsets)
        names = [n for n in found if n not in ("offset_mapping", "overflow_to_sample_mapping")]
        windows.append(
            {
                **{n: found[n][k] for n in names},
                "start_positions": start,
                "end_positions": end,
                "offsets": offsets,
                "context": row["context"],
                "answers": answers["text"],
            }
        )
    return windows


def span_of(answers: dict[str, Any], offsets: list[tuple[int, int] | None]) -> tuple[int, int]:
    """The first and the last token of the first answer, given each token's place in the context."""
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    spans = [(n, *place) for n, place in enumerate(offsets) if place is not None]
    inside = [n for n, first, last in spans if first < end and last > start]
    whole = spans and spans[0][1] <= start and spans[-1][2] >= end
    return (inside[0], inside[-1]) if whole and inside else (0, 0)


ENCODERS: dict[str, Callable[..., Any]] = {
    "ForSequenceClassification": encode_sequence,
    "ForTokenClassification": encode_tokens,
    "ForQuestionAnswering": encode_question,
    "ForCausalLM": encode_text,
    "ForMaskedLM": encode_text,
    "sequence to sequence": encode_pair,
}
