"""How hard the quantisation is at each step: soft codes, lambda mix and Arenas residual, as pure functions of the step.

Evaluation never uses these: it is always fully quantised.
"""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["SOFT_ALPHA_END", "SOFT_ALPHA_START", "LambdaShape", "arenas", "lambda_mix", "soft_alpha"]

LambdaShape = Literal["linear", "cosine", "sigmoid", "exponential"]

SOFT_ALPHA_START = 1.0
SOFT_ALPHA_END = 8.0


def soft_alpha(step: int, total_steps: int, fraction: float) -> float | None:
    """Return the steepness of the soft codes, growing linearly 1 -> 8 over the first `fraction` of the steps.

    None afterwards (and always when `fraction` is 0): the codes are hard.
    """
    span = fraction * total_steps
    if step >= span:
        return None
    return SOFT_ALPHA_START + (SOFT_ALPHA_END - SOFT_ALPHA_START) * step / span


def lambda_mix(step: int, total_steps: int, fraction: float | None, shape: LambdaShape = "linear") -> float:
    """Return the share of the quantised value, 0 -> 1 over the first `fraction` of the steps, then 1.

    None or 0 means no warm-up: fully quantised from the first step. With p the share of the warm-up that is over:
    linear p; cosine (1 - cos(pi p)) / 2; sigmoid 1 / (1 + exp(-10 (p - 1/2))) and exponential 1 - exp(-5 p), both
    stretched so that they begin at 0 and end at 1.
    """
    span = (fraction or 0.0) * total_steps
    if step >= span:
        return 1.0
    p = step / span
    if shape == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * p))
    if shape == "sigmoid":
        low = 1.0 / (1.0 + math.exp(5.0))
        return (1.0 / (1.0 + math.exp(-10.0 * (p - 0.5))) - low) / (1.0 - 2.0 * low)
    if shape == "exponential":
        return (1.0 - math.exp(-5.0 * p)) / (1.0 - math.exp(-5.0))
    return p


def arenas(step: int, initial: float | None, anneal_steps: int) -> float:
    """Return the weight of the full-precision residual: `initial` -> 0 linearly over `anneal_steps`, None is none."""
    if initial is None or step >= anneal_steps:
        return 0.0
    return initial * (1.0 - step / anneal_steps)
