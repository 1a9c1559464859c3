"""AdamW over float32 copies of half-precision parameters: w <- round(w32 - lr * update(grad))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
COPIES = "copies"


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose parameters in half precision have copies in float32, which it updates.

    A step of size lr is smaller than the spacing of bfloat16 around most weights: added to them
    directly it would be rounded away (Micikevicius et al. 2018, "Mixed Precision Training",
    section 3.1). The model computes with the rounded copies. Pieces are small, so that the copies
    cost 4 bytes a trained parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], **options: Any) -> None:
        self.copies = {p: nn.Parameter(p.detach().float()) for p in parameters if p.dtype in HALF}
        super().__init__([self.copies.get(p, p) for p in parameters], **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the copies by the gradients of the parameters, and round them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, copy in self.copies.items():
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        super().step()
        for parameter, copy in self.copies.items():
            parameter.copy_(copy)
            copy.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters."""
        super().zero_grad(set_to_none)
        for parameter in self.copies:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW, and the copies: a run goes on from what it had before rounding."""
        return super().state_dict() | {COPIES: [c.detach() for c in self.copies.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state; the parameters are rounded from its copies."""
        state = dict(state_dict)
        found: list[Tensor] = state.pop(COPIES, [])
        super().load_state_dict(state)
        with torch.no_grad():
            for (parameter, copy), value in zip(self.copies.items(), found, strict=True):
                copy.copy_(value)
                parameter.copy_(copy)
