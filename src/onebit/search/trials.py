"""What every strategy works with: the space, the budget, and one way to have maps measured.

A strategy is a function of `Trials`. It asks for choices and gets their scores; counting, caching, the budget and the
best map so far are kept here, so that no strategy can overspend or forget. Asking again for a choice is free.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onebit.search.cache import ScoreCache
from onebit.search.score import Score
from onebit.search.space import Choice, Levels, Space

__all__ = ["Budget", "Exhausted", "Runner", "Strategy", "Trial", "Trials"]


class Exhausted(Exception):
    """All evaluations are used up; a strategy lets it pass."""


class Runner(Protocol):
    """Measures maps somewhere."""

    def scores(self, maps: Sequence[Levels]) -> Iterator[tuple[int, Score]]:
        """(index of the map, its score) as they come, in any order."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the map that is chosen must keep. min_accuracy: share of tokens that are the model's likeliest."""

    max_bytes: int | None = None
    min_accuracy: float = 0.0
    max_evaluations: int | None = None


@dataclass(frozen=True)
class Trial:
    """A choice that was measured."""

    choice: Choice
    size: int
    score: Score


class Trials:
    """Measured choices of one search.

    `leader` is what strategies go on from: of the trials that fit, those that are accurate enough before others, the
    one of least loss. `best` is what a search may answer with.

    curvature: the second-order estimate of what each level of each unit adds to the loss of a choice, [U, L].
    listener: called after each new choice.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        runner: Runner,
        cache: ScoreCache,
        *,
        seed: int = 0,
        curvature: Callable[[Choice], NDArray[np.float64]] | None = None,
        listener: Callable[[Trials], None] = lambda trials: None,
    ) -> None:
        self.space, self.budget, self.curvature = space, budget, curvature
        self.random = random.Random(seed)
        self.done: dict[Choice, Trial] = {}
        self.seen = 0  # choices that have a score, those of an unfinished request included
        self.measured = 0  # of these, not found in the cache
        self.leader: Trial | None = None
        self._runner, self._cache, self._listener = runner, cache, listener

    @property
    def best(self) -> Trial | None:
        """The trial of least loss that keeps the whole budget; None when no trial does."""
        return self.leader if self.leader is not None and self._is_accurate(self.leader) else None

    @property
    def left(self) -> float:
        """Evaluations that may still be asked for."""
        most = self.budget.max_evaluations
        return np.inf if most is None else most - len(self.done)

    def fits(self, choice: Choice) -> bool:
        """Whether the file of a choice keeps the byte budget."""
        return self.budget.max_bytes is None or self.space.size(choice) <= self.budget.max_bytes

    def evaluate(self, choices: Sequence[Choice]) -> list[Score]:
        """Scores of the choices. Raises Exhausted after the last one that the budget of evaluations allows."""
        fresh = [choice for choice in dict.fromkeys(choices) if choice not in self.done]
        allowed = fresh[: int(min(self.left, len(fresh)))]
        found: dict[Choice, Trial] = {}
        missing = []
        for choice in allowed:
            score = self._cache.get(self.space.map_of(choice))
            if score is None:
                missing.append(choice)
            else:
                found[choice] = self._seen(choice, score)
        maps = [self.space.map_of(choice) for choice in missing]
        try:
            for index, score in self._runner.scores(maps) if maps else ():
                self._cache.put(maps[index], score)
                self.measured += 1
                found[missing[index]] = self._seen(missing[index], score)
        finally:  # also what an interrupted request had got, for the report
            # In the order of asking, whatever the order of coming: what a strategy does must not depend on workers.
            self.done.update((choice, found[choice]) for choice in allowed if choice in found)
        if len(allowed) < len(fresh):
            raise Exhausted
        return [self.done[choice].score for choice in choices]

    def _seen(self, choice: Choice, score: Score) -> Trial:
        trial = Trial(choice, self.space.size(choice), score)
        self.seen += 1
        if self.fits(choice) and (self.leader is None or self._rank(trial) < self._rank(self.leader)):
            self.leader = trial
        self._listener(self)
        return trial

    def _rank(self, trial: Trial) -> tuple[bool, float, int, Choice]:
        return not self._is_accurate(trial), trial.score.loss, trial.size, trial.choice

    def _is_accurate(self, trial: Trial) -> bool:
        return trial.score.accuracy >= self.budget.min_accuracy


Strategy = Callable[[Trials], None]
