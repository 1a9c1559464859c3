"""Prefix checkpoints of PEFT: one table (tokens, 2 L heads dim), keys and values layer by layer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from peftc.capture.program import attribute
from peftc.dataflow.site import Attention
from peftc.ground.diagnostics import error
from peftc.interop.checkpoint import CONFIG, Checkpoint, check_keys, number
from peftc.interop.common import COMMON, PROMPT_PREFIX, base_name
from peftc.interop.draft import Draft, Found, Places, Reader

TABLE = "prompt_embeddings"
PROMPT_OPTIONS = (
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads",
    "num_layers", "encoder_hidden_size",
)  # fmt: skip
KNOWN = (*COMMON, *PROMPT_OPTIONS, "prefix_projection", "init_weights")


class FromPrefix(Reader):
    """The table as PEFT gives it to the model's cache.

    Keys are used as stored, real tokens start at position `tokens`, windows and relative biases
    take the prefix for earlier tokens. In an encoder-decoder only the decoder's self-attention has
    it, and its layer i uses layer 2 i mod L of the table; the other layers take part in nothing.
    """

    kinds: ClassVar[tuple[str, ...]] = ("PREFIX_TUNING",)
    about: ClassVar[str] = "keys and values in front of attention (prefix tuning)"

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse unknown options."""
        check_keys(checkpoint, KNOWN, {})
        for key in PROMPT_OPTIONS[:5]:
            number(checkpoint, key, whole=True)

    def draft(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], places: Places) -> Draft:
        """A prefix at every self-attention, and the table's layers that none uses."""
        draft = Draft("prefix")
        config = checkpoint.config
        table = prompt_table(checkpoint, tensors, places, draft)
        decoder = any(a.stack for a in places.sites.attentions)
        attentions = [
            a
            for a in places.sites.attentions
            if a.role == "attn.kv" and a.stack == ("decoder" if decoder else "")
        ]
        tokens, layers = table.shape[0], config["num_layers"]
        heads = config["num_attention_heads"]
        if config["num_transformer_submodules"] != (2 if decoder else 1):
            raise error(
                "E312",
                f"{CONFIG}: num_transformer_submodules is {config['num_transformer_submodules']} "
                f"for {places.program.signature.model_class}",
                notes=("an encoder-decoder has 2, other models 1",),
            )
        if table.shape[1] != 2 * layers * config["token_dim"] or (
            len(attentions) != layers if not decoder else not 0 < len(attentions) <= layers
        ):
            raise error(
                "E313",
                f"{TABLE} is {list(table.shape)}, for {layers} layers of {config['token_dim']}; "
                f"the model has {len(attentions)} self-attentions",
            )
        by_layer = table.reshape(tokens, 2 * layers, heads, -1)
        used = set()
        for i, attention in enumerate(attentions):
            j = 2 * i % layers if decoder else i
            used.add(j)
            key, value = (by_layer[:, k].transpose(0, 1).contiguous() for k in (2 * j, 2 * j + 1))
            options: dict[str, Any] = {"tokens": tokens}
            if counts_keys(places, attention):
                options["mask"] = "cached"
            draft.pieces.append(
                Found(attention, {"prefix": options}, "attend", {"key": key, "value": value})
            )
        for j in sorted(set(range(layers)) - used):
            draft.unused[f"{TABLE}.{j}"] = by_layer[:, 2 * j : 2 * j + 2].contiguous()
        return draft


def prompt_table(
    checkpoint: Checkpoint, tensors: dict[str, Tensor], places: Places, draft: Draft
) -> Tensor:
    """The prompt table; the other tensors are parameters of the model's head.

    Raises:
        PeftcError: E313 where there is none, or of another length than the configuration says.
    """
    for key, value in tensors.items():
        if key != TABLE:
            places.take_base(draft, key, base_name(key, PROMPT_PREFIX), value, frozen=False)
    config = checkpoint.config
    rows = config["num_virtual_tokens"]
    if checkpoint.kind != "PREFIX_TUNING":
        rows *= config["num_transformer_submodules"]
    table = tensors.get(TABLE)
    if table is None or table.dim() != 2 or table.shape[0] != rows:
        found = "missing" if table is None else f"{list(table.shape)}"
        raise error("E313", f"{TABLE} is {found}; {CONFIG} says {rows} rows")
    return table


def counts_keys(places: Places, attention: Attention) -> bool:
    """Whether a mask depends on how far keys are: a window, or a learned bias."""
    if attention.mask is None:
        return False
    window = getattr(places.program.signature.config.get_text_config(), "sliding_window", None)
    for node in places.facts.of(places.facts.ancestors[attention.mask]):
        if node.op == "get_attr" and isinstance(
            attribute(places.program, str(node.target)), nn.Parameter
        ):
            return True
        if window is not None and any(type(a) is int and abs(a) == window for a in node.args):
            return True
    return False
