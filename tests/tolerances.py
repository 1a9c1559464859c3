"""The tolerances of the whole test suite, by dtype. There is no relative part: sizes are known."""

from __future__ import annotations

from typing import Any

import torch

# The rewritten graph against an independent reference on the plain model.
PARITY: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 0.0, "atol": 1e-5},
    torch.float64: {"rtol": 0.0, "atol": 1e-12},
    torch.bfloat16: {"rtol": 0.0, "atol": 5e-2},
}
# An exported or folded file against the graph it came from.
EXPORT: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 0.0, "atol": 1e-4},
    torch.float16: {"rtol": 0.0, "atol": 1e-2},
}
