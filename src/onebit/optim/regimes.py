"""How hard the quantisation is at each step: soft codes, lambda mix and Arenas residual, as pure functions of the step.

Evaluation never uses these: it is always fully quantised.
"""

from __future__ import annotations

__all__ = ["SOFT_ALPHA_END", "SOFT_ALPHA_START", "arenas", "lambda_mix", "soft_alpha"]

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


def lambda_mix(step: int, total_steps: int, fraction: float | None) -> float:
    """Return the share of the quantised value, 0 -> 1 linearly over the first `fraction` of the steps, then 1.

    None or 0 means no warm-up: fully quantised from the first step.
    """
    span = (fraction or 0.0) * total_steps
    return 1.0 if step >= span else step / span


def arenas(step: int, initial: float | None, anneal_steps: int) -> float:
    """Return the weight of the full-precision residual: `initial` -> 0 linearly over `anneal_steps`, None is none."""
    if initial is None or step >= anneal_steps:
        return 0.0
    return initial * (1.0 - step / anneal_steps)
