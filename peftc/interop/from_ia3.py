"""IA3 checkpoints of PEFT: y = (W x + b) * l, or y = W (x * l) + b; the shape of l says which."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from peftc.ground.diagnostics import error
from peftc.interop.checkpoint import Checkpoint, check_keys
from peftc.interop.common import COMMON, PREFIX, base_name
from peftc.interop.draft import Draft, Found, Places, Reader

KNOWN = (*COMMON, "feedforward_modules", "fan_in_fan_out", "init_ia3_weights")
SUFFIX = ".ia3_l"


class FromIA3(Reader):
    """`ia3_l`: (out, 1) scales what a module gives, (1, in) what it reads."""

    kinds: ClassVar[tuple[str, ...]] = ("IA3",)
    about: ClassVar[str] = "rescaling vectors (IA3)"

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse unknown options."""
        check_keys(checkpoint, KNOWN, {})

    def draft(self, checkpoint: Checkpoint, tensors: dict[str, Tensor], places: Places) -> Draft:
        """A vector for every module that the file names."""
        draft = Draft("ia3")
        for key, value in tensors.items():
            if not key.endswith(SUFFIX):
                frozen = ".base_layer." in key
                places.take_base(draft, key, base_name(key, PREFIX), value, frozen=frozen)
                continue
            path = key.removeprefix(PREFIX).removesuffix(SUFFIX)
            if value.dim() != 2 or 1 not in value.shape:
                raise error("E313", f"{key} is {list(value.shape)}: neither (out, 1) nor (1, in)")
            site = places.module(path, "output" if value.shape[1] == 1 else "input")
            vector = {"vector": {"init": "ones"}}
            draft.pieces.append(Found(site, vector, "multiply", {"l": value.reshape(-1)}))
        return draft
