"""`sensitivity`: measure what each level of each unit costs, solve the knapsack exactly, measure the answer, repeat.

The sum of single costs is not the loss: units interact, most of all at 1 and 1.58 bits. So the knapsack's answers are
measured and correct the costs; when that finds nothing better, costs are measured anew around the best choice, and the
knapsack may only move a few units away from it. It ends when a whole round finds nothing better.
"""

from __future__ import annotations

from collections.abc import Iterator

from onebit.search.knapsack import best_choice
from onebit.search.space import Choice
from onebit.search.surrogate import Surrogate, measure_around
from onebit.search.trials import Trial, Trials

__all__ = ["first_base", "sensitivity"]

_PATIENCE = 6  # answers in a row that are no better, before costs are measured anew
_REACH = 4  # units that may differ from the choice that costs were measured around
_SHARE = 0.6  # of the evaluations left: the rest is for answers


def sensitivity(trials: Trials) -> None:
    """Search `trials.space`; ends by itself, or with Exhausted."""
    base = first_base(trials)
    surrogate = measure_around(trials, base, _SHARE)
    solved = _solve(trials, surrogate, None)
    while True:
        before = trials.best
        centre = _centre(trials, solved)
        surrogate = measure_around(trials, centre, _SHARE)
        solved = _solve(trials, surrogate, (centre, _REACH))
        if trials.best is before or trials.best is None:
            return


def first_base(trials: Trials) -> Choice:
    """Every unit at its finest level, once the largest uniform choice that fits has been measured.

    So there is an answer from the first evaluation on.
    """
    space = trials.space
    fitting = [space.uniform(level) for level in space.levels if trials.fits(space.uniform(level))]
    trials.evaluate([max(fitting, key=space.size) if fitting else space.smallest])
    return space.uniform(space.levels[-1])


def _centre(trials: Trials, solved: Trial | None) -> Choice:
    chosen = trials.best or solved
    return trials.space.smallest if chosen is None else chosen.choice


def _solve(trials: Trials, surrogate: Surrogate, near: tuple[Choice, int] | None) -> Trial | None:
    """Measure the knapsack's answers until several in a row are no better; the best of them."""
    best: Trial | None = None
    misses = 0
    for choice in _answers(trials, surrogate, near):
        trials.evaluate([choice])
        found = trials.done[choice]
        if best is None or found.score.loss < best.score.loss:
            best, misses = found, 0
        else:
            misses += 1
        if misses >= _PATIENCE:
            break
        surrogate.refit(trials.done.values())
    return best


def _answers(trials: Trials, surrogate: Surrogate, near: tuple[Choice, int] | None) -> Iterator[Choice]:
    """The best choice by the costs as they are, among those that were not measured yet."""
    while True:
        excluded = [choice for choice in trials.done if trials.fits(choice)]
        choice = best_choice(surrogate.cost_UL, trials.space, trials.budget.max_bytes, excluded=excluded, near=near)
        if choice is None:
            return
        yield choice
