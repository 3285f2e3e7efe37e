"""The sum of a matrix's gradients over the microbatches of a step, when there is more than one.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GradientSum"]


class GradientSum:
    """In bfloat16: 2 bytes a weight while a step lasts. What is summed is deposited once, as a large batch would be."""

    def __init__(self) -> None:
        self._sum_OI: Tensor | None = None

    def add(self, g_OI: Tensor) -> None:
        """Add a gradient [O, I] of any float type; it is not kept."""
        if self._sum_OI is None:
            self._sum_OI = g_OI.to(torch.bfloat16, copy=True)
        else:
            self._sum_OI += g_OI  # in float32, rounded once

    def total(self) -> Tensor:
        """The sum, [O, I]."""
        assert self._sum_OI is not None
        return self._sum_OI
