"""`evolution`: the better halves of two good choices, a few units changed, made to fit; a baseline without a model."""

from __future__ import annotations

from onebit.search.random_search import filled, random_choice
from onebit.search.sensitivity import first_base
from onebit.search.space import Choice
from onebit.search.trials import Trial, Trials

__all__ = ["evolution"]

_POPULATION = 16
_CHILDREN = 8
_TOURNAMENT = 3
_BARREN = 50  # generations in a row without a new choice


def evolution(trials: Trials) -> None:
    """Search until the evaluations are used up, or no new choice comes."""
    first_base(trials)
    trials.evaluate([random_choice(trials) for _ in range(_POPULATION)])
    barren = 0
    while barren < _BARREN:
        fitting = [trial for trial in trials.done.values() if trials.fits(trial.choice)]
        population = sorted(fitting, key=lambda trial: (trial.score.loss, trial.choice))[:_POPULATION]
        children = [_child(trials, population) for _ in range(_CHILDREN)]
        fresh = [choice for choice in children if choice not in trials.done]
        barren = 0 if fresh else barren + 1
        trials.evaluate(fresh)


def _child(trials: Trials, population: list[Trial]) -> Choice:
    """Each unit from one of two parents, about one of them changed at random."""
    mother, father = (_parent(trials, population) for _ in range(2))
    levels, units = len(trials.space.levels), len(mother)
    mixed = [trials.random.choice(pair) for pair in zip(mother, father, strict=True)]
    for unit in range(units):
        if trials.random.random() < 1.0 / units:
            mixed[unit] = trials.random.randrange(levels)
    return filled(trials, tuple(mixed))


def _parent(trials: Trials, population: list[Trial]) -> Choice:
    rivals = [trials.random.choice(population) for _ in range(_TOURNAMENT)]
    return min(rivals, key=lambda trial: (trial.score.loss, trial.choice)).choice
