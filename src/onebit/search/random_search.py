"""`random`: choices at random that use the budget up; the line that every other strategy must beat."""

from __future__ import annotations

from onebit.search.space import Choice
from onebit.search.trials import Trials

__all__ = ["filled", "random_choice", "random_search"]

_BATCH = 8
_TRIES = 200


def random_search(trials: Trials) -> None:
    """Measure random choices until evaluations or new choices run out."""
    while True:
        batch = [choice for choice in (random_choice(trials) for _ in range(_BATCH)) if choice not in trials.done]
        if not batch:
            batch = [choice for choice in (random_choice(trials) for _ in range(_TRIES)) if choice not in trials.done]
        if not batch:
            return
        trials.evaluate(batch)


def random_choice(trials: Trials) -> Choice:
    """Every unit at a random level, then made to fit and filled up."""
    levels = len(trials.space.levels)
    return filled(trials, tuple(trials.random.randrange(levels) for _ in trials.space.units))


def filled(trials: Trials, choice: Choice) -> Choice:
    """Random units lowered until the file fits, then random units raised while it does.

    Without the second half random choices would waste the budget, and be easy to beat.
    """
    current = list(choice)
    while not trials.fits(tuple(current)):
        coarser = {unit: _next(trials, current, unit, -1) for unit in range(len(current))}
        lower = [(unit, level) for unit, level in coarser.items() if level is not None]
        if not lower:
            return trials.space.smallest
        unit, level = trials.random.choice(lower)
        current[unit] = level
    for unit in trials.random.sample(range(len(current)), len(current)):
        while (finer := _next(trials, current, unit, 1)) is not None:
            level, current[unit] = current[unit], finer
            if not trials.fits(tuple(current)):
                current[unit] = level
                break
    return tuple(current)


def _next(trials: Trials, choice: list[int], unit: int, direction: int) -> int | None:
    """The next level of a unit that takes fewer (-1) or more (+1) bytes, None at the end."""
    sizes = trials.space.units[unit].sizes
    now = direction * sizes[choice[unit]]
    further = [(direction * size, level) for level, size in enumerate(sizes) if direction * size > now]
    return min(further)[1] if further else None
