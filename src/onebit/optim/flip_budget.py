"""eta of pure training from how often a weight may move in a whole run, instead of from a learning rate.

Gradients that are noise alone move a counter like a random walk: after deposits of size 1 with the shares eta_t it has
spread over sum eta_t^2 thresholds squared, and fires about as often. eta_t^2 is eta^2 times what the schedule makes of
the rate (`Pure1BitOptimizer.eta`). Signal fires on top, but most of what a counter
sees is noise, and weights at the end of their range stay where they are: measured runs make a third to four fifths of
the moves that this predicts. It is a bound to plan with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from onebit.errors import ConfigError

__all__ = ["eta_from_flip_budget"]


def eta_from_flip_budget(moves: float, factors: Iterable[float]) -> float:
    """The eta at which noise moves a weight `moves` times in a run, on average.

    factors: what a schedule multiplies the rate with, for each step of the run (1.0 at its peak); a cosine over T steps
    gives sqrt(2 moves / T). Raises ConfigError for numbers that no eta satisfies.
    """
    energy = math.fsum(factors)
    if not moves > 0 or not math.isfinite(moves):
        raise ConfigError(f"the flip budget is {moves}, expected a positive number of moves a weight, such as 0.5")
    if not energy > 0:
        raise ConfigError("the schedule's rate is 0 in every step, so that no budget of moves can be spent")
    return math.sqrt(moves / energy)
