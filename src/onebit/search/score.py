"""What a map was measured at. Without torch: worker processes and the cache need no more."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Score"]


@dataclass(frozen=True, slots=True)
class Score:
    """Nats per token, inf where the model gave no number; share of tokens that were the likeliest; tokens scored."""

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss), at most exp(700)."""
        return math.exp(min(self.loss, 700.0))
