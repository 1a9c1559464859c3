"""Text -> token ids, and the ids that stand for words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peftc.capture.load import load_tokenizer
from peftc.ground.diagnostics import PeftcError, error

NO_WORD = re.compile(r"\[.+\]|<.+>")  # [unused7], <extra_id_0>, <0x0A>: marks and bytes


class Words:
    """Text -> token ids, with a tokenizer that is given, or the one beside the model's weights."""

    def __init__(self, tokenizer: Any = None, reference: str | None = None) -> None:
        self.given = tokenizer
        self.reference = reference

    @property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            PeftcError: E083 where there is none.
        """
        if self.given is None:
            self.given = load_tokenizer(self.reference)
        return self.given

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without the marks that a tokenizer puts around it.

        Raises:
            PeftcError: E083 without a tokenizer, E114 for a text of no tokens.
        """
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not found:
            raise error("E114", f"the text {text!r} has no tokens to start from")
        return list(found)

    def frequent(self, count: int, rows: int, config: Any) -> list[int]:
        """The first `count` ids, of a table of `rows`, that stand for words.

        Subword vocabularies are in order of frequency, or nearly so. Where there is no tokenizer,
        only what the config calls special is left out.
        """
        special = special_ids(config)
        names: list[str] = []
        if self.given is not None or self.reference is not None:
            try:
                special |= set(self.tokenizer.all_special_ids)
                rows = min(rows, len(self.tokenizer))
                names = self.tokenizer.convert_ids_to_tokens(list(range(rows)))
            except PeftcError:
                self.reference = None
        marks = {k for k, name in enumerate(names) if name is None or NO_WORD.fullmatch(name)}
        return [k for k in range(rows) if k not in special | marks][:count]


def spelt(start: Any, tokens: int, words: Words, vocabulary: int) -> list[int]:
    """The ids of `text` or `ids`, repeated or cut to `tokens`."""
    ids = checked(words.ids(start.text) if start.kind == "text" else start.ids, vocabulary)
    return [ids[k % len(ids)] for k in range(tokens)]


def checked(ids: Sequence[int], vocabulary: int) -> list[int]:
    """The ids, all of them in the vocabulary.

    Raises:
        PeftcError: E114 where one is not.
    """
    if bad := [k for k in ids if k >= vocabulary]:
        raise error(
            "E114",
            f"the id {bad[0]} is not in the model's vocabulary of {vocabulary}",
            help=(f"ids are 0 to {vocabulary - 1}", "text needs the model's own tokenizer"),
        )
    return list(ids)


def special_ids(config: Any) -> set[int]:
    """The token ids that a config gives a meaning of their own; one name may have several."""
    values = [v for k, v in vars(config).items() if k.endswith("_token_id")]
    return {i for v in values for i in (v if isinstance(v, list) else [v]) if isinstance(i, int)}


def plain_token(config: Any, vocabulary: int) -> int:
    """A token id that the config gives no special meaning."""
    special = special_ids(config)
    return next(k for k in range(min(3, vocabulary - 1), vocabulary) if k not in special)
