"""A stand-in for the loss that costs nothing to ask: a sum of one term for each unit, from measured single changes.

The terms are what changing one unit alone does to the loss of a base choice. Where there are too few evaluations to
measure all of them, the rest come from a second-order estimate, scaled by what was measured. Losses of other choices
then correct the terms: by least squares, each term as uncertain as it is large.

Shape suffixes: U units, L levels, N trials.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from onebit.search.space import Choice
from onebit.search.trials import Trial, Trials

__all__ = ["Surrogate", "changed", "measure_around"]

_RELATIVE_ERROR = 0.2  # of a term; more lets few choices bend many terms (0.5 predicted unseen choices worse)
_NOISE = 1e-3  # nats: the least that is taken for what a sum of terms cannot follow
_WORST = 20.0  # nats: a loss above says no more, and next to it a solver would not see small ones


def changed(choice: Choice, unit: int, level: int) -> Choice:
    """The choice with one unit at another level."""
    return (*choice[:unit], level, *choice[unit + 1 :])


class Surrogate:
    """loss(choice) is about `offset` + the sum of `cost_UL[unit, level]`."""

    def __init__(self, base: Choice, loss: float, cost_UL: NDArray[np.float64]) -> None:
        self.base = base
        self._prior_offset, self._prior_UL = loss, cost_UL
        self.offset, self.cost_UL = loss, cost_UL

    def predict(self, choice: Choice) -> float:
        """The loss that the sum gives."""
        return self.offset + float(self.cost_UL[np.arange(len(choice)), list(choice)].sum())

    def refit(self, trials: Iterable[Trial]) -> None:
        """Correct the terms by choices that differ from the base in more than one unit."""
        kept = [t for t in trials if sum(a != b for a, b in zip(t.choice, self.base, strict=True)) > 1]
        kept = [t for t in kept if np.isfinite(t.score.loss)]
        if not kept:
            return
        units, levels = self._prior_UL.shape
        picked_NK = np.zeros((len(kept), units * levels + 1))
        for row, trial in enumerate(kept):
            picked_NK[row, [unit * levels + index for unit, index in enumerate(trial.choice)]] = 1.0
        picked_NK[:, -1] = 1.0
        prior_K = np.append(self._prior_UL.ravel(), self._prior_offset)
        spread_K = _RELATIVE_ERROR * np.abs(prior_K)
        # The offset may be as wrong as all terms of a choice together.
        spread_K[-1] = _RELATIVE_ERROR * np.abs(self._prior_UL).max(1).sum()
        wrong_N = np.array([trial.score.loss for trial in kept]) - picked_NK @ prior_K
        scaled_NK = picked_NK * spread_K
        # Terms of pairs are no noise, but a sum can only average them out.
        noise = max(float(np.std(wrong_N)), _NOISE)
        covariance_NN = scaled_NK @ scaled_NK.T + noise**2 * np.eye(len(kept))
        fitted_K = prior_K + spread_K * (scaled_NK.T @ np.linalg.solve(covariance_NN, wrong_N))
        self.offset, self.cost_UL = float(fitted_K[-1]), fitted_K[:-1].reshape(units, levels)


def measure_around(trials: Trials, base: Choice, share: float = 1.0) -> Surrogate:
    """Measure every single change of a base, with at most `share` of the evaluations that are left.

    The last units come first: what was computed before them is still there then. Levels that are not measured get the
    second-order estimate; the largest estimates are measured first.
    """
    space = trials.space
    loss = min(trials.evaluate([base])[0].loss, _WORST)
    singles = [
        (unit, level)
        for unit in reversed(range(len(space.units)))
        for level in range(len(space.levels))
        if level != base[unit]
    ]
    room = int(min(len(singles), share * trials.left)) if trials.left < np.inf else len(singles)
    estimate_UL = None
    asked = singles
    if room < len(singles):
        estimate_UL = np.zeros((len(space.units), len(space.levels)))
        if trials.curvature is not None:
            estimate_UL = trials.curvature(base)
        worth = set(sorted(singles, key=lambda single: (-abs(estimate_UL[single]), single))[:room])
        asked = [single for single in singles if single in worth]
    scores = trials.evaluate([changed(base, unit, level) for unit, level in asked])
    added = [min(score.loss, _WORST) - loss for score in scores]
    cost_UL = np.zeros((len(space.units), len(space.levels)))
    if estimate_UL is not None:
        estimated = np.array([estimate_UL[single] for single in asked])
        right = estimated > 0
        ratio = float(np.median(np.array(added)[right] / estimated[right])) if right.any() else 1.0
        cost_UL = estimate_UL * ratio
    for single, cost in zip(asked, added, strict=True):
        cost_UL[single] = cost
    cost_UL[np.arange(len(base)), list(base)] = 0.0
    return Surrogate(base, loss, cost_UL)
