"""One row -> the tokens that a task reads, and its labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftc.capture.loss import IGNORED
from peftc.train.lines import WrongRow
from peftc.train.task import Task, label_number

TOKEN = 64  # characters of a text that are looked at first, a token


def encode_sequence(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A text, or a pair, and its label."""
    length = task.within(length)
    texts = [part_of(row[k], tokenizer, length) for k in ("text", "text_pair") if k in row]
    found = with_tokens(tokenizer(*texts, truncation=True, max_length=length))
    return {**found, "labels": label_number(row["label"], task)}


def encode_tokens(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """Words with tags: a word's first piece has its tag, the others do not count."""
    length = task.within(length)
    every = [part_of(w, tokenizer, length) for w in row["tokens"]]
    words = part_of(every, tokenizer, length, is_split_into_words=True)
    tags = row["tags"][-len(words) :] if cuts_left(tokenizer) else row["tags"]
    found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=length)
    labels, last = [], None
    for word in found.word_ids():
        fresh = word is not None and word != last
        labels.append(label_number(tags[word], task) if fresh else IGNORED)
        last = word
    return {**with_tokens(found), "labels": labels}


def encode_text(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A text whose labels are its own tokens; the loss shifts them."""
    length = task.within(length)
    text = part_of(row["text"], tokenizer, length)
    found = with_tokens(tokenizer(text, truncation=True, max_length=length))
    return {**found, "labels": list(found["input_ids"])}


def encode_pair(row: dict[str, Any], task: Task, tokenizer: Any, length: int) -> dict[str, Any]:
    """A source, and the target's tokens as labels."""
    longest, length = task.within(length, "decoder_sequence"), task.within(length)
    source = part_of(row["source"], tokenizer, length)
    aim = part_of(row["target"], tokenizer, longest)
    found = with_tokens(tokenizer(source, truncation=True, max_length=length))
    target = with_tokens(tokenizer(text_target=aim, truncation=True, max_length=longest))
    return {**found, "labels": list(target["input_ids"])}


def part_of(text: Any, tokenizer: Any, length: int, **options: Any) -> Any:
    """The part of a text, or of a list of words, that is enough where `length` tokens are kept.

    It has twice as many, so that what follows it is too far away to change those that are kept: a
    tokenizer takes a hundred bytes for each character that it reads.
    """
    size, options = TOKEN * length, {**options, "add_special_tokens": False, "verbose": False}
    while size < len(text):
        part = text[-size:] if cuts_left(tokenizer) else text[:size]
        if len(tokenizer(part, **options)["input_ids"]) > 2 * length:
            return part
        size *= 4
    return text


def cuts_left(tokenizer: Any) -> bool:
    """Whether a tokenizer keeps the end of a text that is too long."""
    return getattr(tokenizer, "truncation_side", "right") == "left"


def with_tokens(found: Any) -> dict[str, Any]:
    """What a tokenizer made of a text.

    Raises:
        WrongRow: where that is nothing: attention over no token is not a number.
    """
    if not found["input_ids"]:
        raise WrongRow("its text has no tokens", "leave the row out")
    return dict(found)


def encode_question(
    row: dict[str, Any], task: Task, tokenizer: Any, length: int
) -> list[dict[str, Any]]:
    """A question with its context, in windows that overlap by a third (Devlin et al. 2019).

    The labels are the first and the last token of the answer; in a window that does not have all
    of it, and where there is none, both are the first token of the window.

    Raises:
        WrongRow: for a question that leaves the context no room.
    """
    length = task.within(length)
    room = length - len(tokenizer(row["question"], "")["input_ids"])
    if room < 2:
        message = f"the question `{row['question'][:40]}` leaves its context no room in {length}"
        raise WrongRow(message, "longer texts: --length 384")
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
