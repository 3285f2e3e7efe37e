"""How far two sets of logits, or two residual streams, are apart: pure functions and the bounds they are held to.

Every figure is a share of the largest |value| of the reference, so that one bound fits all models.

Shapes: T tokens, V vocabulary, D hidden size, N any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FLOAT_ACTIVATIONS",
    "ROUNDED_ACTIVATIONS",
    "Spread",
    "Tolerance",
    "exceeded",
    "kl_divergence",
    "margin",
    "spread",
    "tolerance_for",
]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Spread:
    """Distribution of |a - b| over all values, as shares of max |a|; NaN where a value is not a number."""

    median: float
    percentile_99: float
    maximum: float


Tolerance = Spread  # a bound on each of the three

# Sums taken in another order differ by about 1e-6 of the largest logit, a wrong formula by 1e-2 and more.
FLOAT_ACTIVATIONS = Tolerance(1e-4, 1e-4, 1e-4)
# A last-bit difference can carry one int8 activation over a rounding boundary: a real jump, but a rare one.
ROUNDED_ACTIVATIONS = Tolerance(1e-4, 1e-3, 2e-2)


def tolerance_for(activations: frozenset[str]) -> Tolerance:
    """The bound for a model whose linear layers use these activation quantisers."""
    return ROUNDED_ACTIVATIONS if activations - {"none"} else FLOAT_ACTIVATIONS


def spread(a_N: Floats, b_N: Floats) -> Spread:
    """Compare two arrays of one shape; `a` is the reference."""
    top = float(np.abs(a_N).max()) or 1.0
    relative = np.abs(a_N.astype(np.float64) - b_N) / top
    return Spread(float(np.median(relative)), float(np.percentile(relative, 99)), float(relative.max()))


def exceeded(found: Spread, bound: Tolerance) -> list[str]:
    """What is beyond the bound, in words; NaN is beyond every bound."""
    pairs = {
        "the median difference": (found.median, bound.median),
        "the 99th percentile of the differences": (found.percentile_99, bound.percentile_99),
        "the largest difference": (found.maximum, bound.maximum),
    }
    return [
        f"{name} is {value:.1e}, allowed {limit:.0e}" for name, (value, limit) in pairs.items() if not value <= limit
    ]


def kl_divergence(logits_a_TV: Floats, logits_b_TV: Floats) -> NDArray[np.float64]:
    """KL(a || b) of the predicted distributions in nats, float64 [T]."""
    log_a, log_b = _log_softmax(logits_a_TV), _log_softmax(logits_b_TV)
    kl_T: NDArray[np.float64] = (np.exp(log_a) * (log_a - log_b)).sum(-1)
    return np.maximum(kl_T, 0.0)  # rounding can leave -1e-17


def margin(logits_V: Floats) -> float:
    """Distance between the two best logits."""
    second, first = np.partition(logits_V, -2)[-2:]
    return float(first - second)


def _log_softmax(logits_TV: Floats) -> NDArray[np.float64]:
    shifted = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
