"""The floating-point operations of a graph: products of matrices and attention, as torch counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def attention(query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> int:
    """The two products of an attention kernel; torch has no formula for the CPU's."""
    return sdpa_flop_count(query, key, value)


KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


def flops(program: Any, values: Sequence[torch.Tensor]) -> int:
    """What one call of `program.flat` takes."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        program.flat(*values)
    return counter.get_total_flops()
