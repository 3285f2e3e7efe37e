"""`sensitivity`: measure what each level of each unit costs, solve the knapsack exactly, measure the answer, repeat.

The sum of single costs is not the loss: units interact, most of all at 1 and 1.58 bits. So the knapsack's answers are
measured and correct the costs; when that finds nothing better, costs are measured anew around the best choice, and the
knapsack may only move a few units away from it. It ends when a whole round finds nothing better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onebit.search.knapsack import best_choice
from onebit.search.space import Choice
from onebit.search.surrogate import Surrogate, measure_around
from onebit.search.trials import Trials

__all__ = ["first_base", "sensitivity"]

_PATIENCE = 6  # answers in a row that are no better, before costs are measured anew
_REACH = 4  # units that may differ from the choice that costs were measured around
_SHARE = 0.6  # of the evaluations left: the rest is for answers


def sensitivity(trials: Trials) -> None:
    """Search `trials.space`; ends by itself, or with Exhausted."""
    _solve(trials, measure_around(trials, first_base(trials), _SHARE), None)
    before = None
    while trials.leader is not before:
        before = trials.leader
        assert before is not None  # the first choice of all fits
        surrogate = measure_around(trials, before.choice, _SHARE)
        _solve(trials, surrogate, (before.choice, _REACH))


def first_base(trials: Trials) -> Choice:
    """Every unit at its finest level, once the largest uniform choice that fits, or the smallest of all, is measured.

    So there is a leader from the first evaluation on.
    """
    space = trials.space
    fitting = [space.uniform(level) for level in space.levels if trials.fits(space.uniform(level))]
    trials.evaluate([max(fitting, key=space.size) if fitting else space.smallest])
    return space.uniform(space.levels[-1])


def _solve(trials: Trials, surrogate: Surrogate, near: tuple[Choice, int] | None) -> None:
    """Measure the knapsack's answers until several in a row are no better than the best of them."""
    best, misses = math.inf, 0
    for choice in _answers(trials, surrogate, near):
        loss = trials.evaluate([choice])[0].loss
        misses = 0 if loss < best else misses + 1
        best = min(best, loss)
        if misses >= _PATIENCE:
            return
        surrogate.refit(trials.done.values())


def _answers(trials: Trials, surrogate: Surrogate, near: tuple[Choice, int] | None) -> Iterator[Choice]:
    """The best choice by the costs as they are, among those that were not measured yet."""
    while True:
        excluded = [choice for choice in trials.done if trials.fits(choice)]
        choice = best_choice(surrogate.cost_UL, trials.space, trials.budget.max_bytes, excluded=excluded, near=near)
        if choice is None:
            return
        yield choice
