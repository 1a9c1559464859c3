"""Prompt and p-tuning checkpoints of PEFT: rows in front of the input embeddings."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from peftc.ground.diagnostics import error
from peftc.interop.checkpoint import Checkpoint, check_keys, number
from peftc.interop.common import COMMON
from peftc.interop.draft import Draft, Found, Places, Reader
from peftc.interop.from_prefix import PROMPT_OPTIONS, TABLE, prompt_table

KNOWN = (
    *COMMON, *PROMPT_OPTIONS, "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs",
    "tokenizer_name_or_path", "encoder_reparameterization_type", "encoder_num_layers",
    "encoder_dropout",
)  # fmt: skip


class FromPrompt(Reader):
    """The rows as PEFT gives them to the model, as `inputs_embeds`.

    Outputs keep the rows (logits are longer by them), a pooler of the first token reads the first
    row, and no id is padding, since the model sees none. A p-tuning checkpoint holds what its
    encoder gave. Of an encoder-decoder's two halves the first goes in front of the encoder.
    """

    kinds: ClassVar[tuple[str, ...]] = ("PROMPT_TUNING", "P_TUNING")
    about: ClassVar[str] = "rows in front of the embeddings (prompt tuning, p-tuning)"

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse unknown options."""
        check_keys(checkpoint, KNOWN, {})
        for key in ("num_virtual_tokens", "num_transformer_submodules"):
            number(checkpoint, key, whole=True)

    def draft(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], places: Places) -> Draft:
        """A prompt at the embedding of the first stack, and the rows that none uses."""
        draft = Draft("prompt")
        table = prompt_table(checkpoint, tensors, places, draft)
        tokens = checkpoint.config["num_virtual_tokens"]
        site = places.sites.embeddings[0].site if places.sites.embeddings else None
        if site is None or site.width != table.shape[1]:
            width = "no token embedding" if site is None else f"embeddings of {site.width}"
            raise error("E313", f"{TABLE} is {list(table.shape)}, the model has {width}")
        prepend = {"prepend": {"trim": False, "padding": "none"}}
        rows = {"embedding": table[:tokens].contiguous()}
        draft.pieces.append(Found(site, {"prompt": {"tokens": tokens}}, prepend, rows))
        if len(table) > tokens:
            draft.unused[TABLE] = table[tokens:].contiguous()
        return draft
