"""Learning rates as pure functions of the step, so that a resumed run needs no state to go on exactly.

Steps count from 0; the rate of step t is the one the optimizer uses for update t + 1. Every kind starts with a linear
warm-up from peak / warmup_steps to peak and never falls below `minimum` after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args

from onebit.errors import ConfigError, nearest_name

__all__ = ["STAGE_DROP", "Decay", "LearningRate", "learning_rate", "weight_decay"]

Decay = Literal["constant", "linear", "cosine", "two-stage"]

# The drop of the rate at half of a BitNet run: b1.58 went from 1.5e-3 to 1.0e-3, and 1.2e-3 to 8e-4 when larger.
STAGE_DROP = 2.0 / 3.0


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A learning-rate schedule; calling it gives the rate of a step.

    Raises:
        ConfigError: an unknown decay, or numbers that contradict each other; named as the flag is.
    """

    peak: float
    total_steps: int
    warmup_steps: int = 0
    minimum: float = 0.0
    decay: Decay = "cosine"

    def __post_init__(self) -> None:
        known = get_args(Decay)
        if self.decay not in known:
            raise ConfigError(
                f"--lr-decay: '{self.decay}' is not one of {', '.join(known)}{nearest_name(str(self.decay), known)}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"learning rate: {field.name} is {value}; a number of at least 0 was expected")
        if self.minimum > self.peak:
            raise ConfigError(f"--min-lr {self.minimum} is above --lr {self.peak}")

    def __call__(self, step: int) -> float:
        return learning_rate(step, self)

    def as_factor(self) -> Callable[[int], float]:
        """Return step -> rate / peak, the form that torch's LambdaLR takes."""
        if self.peak == 0.0:
            return lambda step: 0.0
        return lambda step: learning_rate(step, self) / self.peak


def learning_rate(step: int, schedule: LearningRate) -> float:
    """Return the learning rate of a step.

    With p = (step - warmup) / (total - warmup) in [0, 1]:
    constant  peak
    linear    minimum + (peak - minimum) (1 - p)
    cosine    minimum + (peak - minimum) (1 + cos(pi p)) / 2
    two-stage max(minimum, peak (1 - p) d), d = 1 in the first half of all steps and 2/3 in the second: the abrupt drop
              mid-run is what ternary models profit from (BitNet b1.58's S-shaped loss curve); float ones do not.
    """
    if step < schedule.warmup_steps:
        return schedule.peak * (step + 1) / schedule.warmup_steps
    if schedule.decay == "constant":
        return schedule.peak
    span = max(schedule.total_steps - schedule.warmup_steps, 1)
    progress = min((step - schedule.warmup_steps) / span, 1.0)
    if schedule.decay == "two-stage":
        drop = STAGE_DROP if in_second_stage(step, schedule.total_steps) else 1.0
        return max(schedule.minimum, schedule.peak * (1.0 - progress) * drop)
    shape = 1.0 - progress if schedule.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return schedule.minimum + (schedule.peak - schedule.minimum) * shape


def weight_decay(step: int, initial: float, total_steps: int, decay: Decay) -> float:
    """Return the weight decay of a step: `initial`, and 0 in the second half of a two-stage run.

    Latent weights that decay keep crossing the thresholds and flip; BitNet b1.58 goes from 0.1 to 0 at half.
    """
    return 0.0 if decay == "two-stage" and in_second_stage(step, total_steps) else initial


def in_second_stage(step: int, total_steps: int) -> bool:
    """Tell whether a step lies in the second half of the run."""
    return 2 * step >= total_steps
