"""Strategies on losses that are known: what they find is held against every choice there is."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from onebit.search.cache import ScoreCache
from onebit.search.run import strategy_of
from onebit.search.score import Score
from onebit.search.settings import STRATEGIES
from onebit.search.space import Choice, Levels, Space, Unit
from onebit.search.surrogate import measure_around
from onebit.search.trials import Budget, Exhausted, Trials

pytest.importorskip("scipy")
pytest.importorskip("networkx")

Loss = Callable[[Choice], float]
UNITS = 6
SIZES = (64, 128, 256, 576)


def make_space(units: int = UNITS, seed: int = 0) -> Space:
    generator = np.random.default_rng(seed)
    factors = generator.integers(1, 6, units)
    made = [Unit(f"u{i}", (f"m{i}",), tuple(int(f) * s for s in SIZES), 100) for i, f in enumerate(factors)]
    return Space(("binary", "ternary", "int4", "int8"), tuple(made), 1000, 640)


def make_loss(space: Space, seed: int = 0, interaction: float = 0.15) -> Loss:
    """A sum over units, less for finer levels, and terms of pairs that a sum cannot follow."""
    generator = np.random.default_rng(seed + 100)
    count = len(space.units)
    weight = generator.uniform(0.02, 0.6, count)
    error = np.array([1.0, 0.7, 0.12, 0.005])
    pairs = generator.normal(0.0, interaction, (count, count))

    def loss(choice: Choice) -> float:
        terms = weight * error[list(choice)]
        return float(3.0 + terms.sum() + terms @ pairs @ terms)

    return loss


class Computed:
    """A runner that computes losses, and accuracies that mostly fall with them, and counts the maps."""

    def __init__(self, space: Space, loss: Loss, reverse: bool = False) -> None:
        self.space, self.loss, self.reverse, self.count = space, loss, reverse, 0

    def score(self, choice: Choice) -> Score:
        loss = self.loss(choice)
        return Score(loss, max(0.0, 1.0 - loss / 8 - 0.02 * (sum(choice) % 3)), 100)

    def scores(self, maps: Sequence[Levels]) -> Iterator[tuple[int, Score]]:
        order = range(len(maps))
        for index in reversed(order) if self.reverse else order:
            self.count += 1
            yield index, self.score(self.space.choice_of(maps[index]))

    def close(self) -> None:
        pass


def run(
    strategy: str, space: Space, loss: Callable[[Choice], float], *, reverse: bool = False, **budget: float
) -> Trials:
    runner = Computed(space, loss, reverse)
    trials = Trials(space, Budget(**budget), runner, ScoreCache(None), seed=1)  # type: ignore[arg-type]
    with contextlib.suppress(Exhausted):
        strategy_of(strategy)(trials)
    assert runner.count == trials.measured == len(trials.done)
    return trials


def budgets(space: Space) -> list[int]:
    sizes = space.size(space.smallest), space.size(space.uniform("int8"))
    return [sizes[0] + (sizes[1] - sizes[0]) * percent // 100 for percent in (5, 20, 50, 80)]


@functools.cache
def everything(seed: int) -> list[tuple[Choice, int, float]]:
    """Every choice of `make_space(seed=seed)`, its size and its loss."""
    space = make_space(seed=seed)
    loss = make_loss(space, seed)
    return [(c, space.size(c), loss(c)) for c in itertools.product(range(4), repeat=UNITS)]


@pytest.mark.parametrize("strategy", ["sensitivity", "expander"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_optimum_is_found_within_one_per_cent_by_few_evaluations(strategy: str, seed: int) -> None:
    space = make_space(seed=seed)
    loss = make_loss(space, seed)
    for limit in budgets(space):
        optimum = min(value for _, size, value in everything(seed) if size <= limit)
        trials = run(strategy, space, loss, max_bytes=limit, max_evaluations=len(everything(seed)) // 20)
        assert trials.best is not None
        assert trials.best.size <= limit
        assert trials.best.score.loss <= 1.01 * optimum
        assert len(trials.done) <= 0.05 * len(everything(seed))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("evaluations", [1, 7, 30])
def test_no_strategy_spends_more_than_it_may(strategy: str, evaluations: int) -> None:
    space = make_space(units=12)
    limit = budgets(space)[1]
    trials = run(strategy, space, make_loss(space), max_bytes=limit, max_evaluations=evaluations)
    assert len(trials.done) <= evaluations
    assert trials.best is not None
    assert trials.best.size == space.size(trials.best.choice) <= limit


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_answer_is_the_best_that_is_accurate_enough(strategy: str) -> None:
    space = make_space(units=12)
    loss, limit = make_loss(space), budgets(space)[1]
    free = run(strategy, space, loss, max_bytes=limit, max_evaluations=60)
    reached = sorted(trial.score.accuracy for trial in free.done.values() if free.fits(trial.choice))[-5]
    trials = run(strategy, space, loss, max_bytes=limit, max_evaluations=60, min_accuracy=reached)
    keeping = [t for t in trials.done.values() if t.size <= limit and t.score.accuracy >= reached]
    assert trials.best == min(keeping, key=lambda t: (t.score.loss, t.size, t.choice))
    never = run(strategy, space, loss, max_bytes=limit, max_evaluations=60, min_accuracy=0.99)
    assert never.best is None
    assert never.leader is not None
    assert list(never.done) == list(free.done)  # it looked as far as without


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_that_are_no_number_are_avoided(strategy: str) -> None:
    space = make_space()
    usual, limit = make_loss(space), budgets(space)[1]

    def is_number(choice: Choice) -> bool:
        return choice[0] != 0 and choice[1:3] != (0, 0)

    def loss(choice: Choice) -> float:
        return usual(choice) if is_number(choice) else np.inf

    trials = run(strategy, space, loss, max_bytes=limit, max_evaluations=200)
    optimum = min(value for choice, size, value in everything(0) if size <= limit and is_number(choice))
    assert trials.best is not None
    assert trials.best.score.loss <= (1.01 if strategy in ("sensitivity", "expander") else 1.1) * optimum


def test_what_an_interrupted_request_had_got_is_kept() -> None:
    space = make_space()
    runner = Computed(space, make_loss(space))

    class Interrupted(Computed):
        def scores(self, maps: Sequence[Levels]) -> Iterator[tuple[int, Score]]:
            yield from itertools.islice(super().scores(maps), 3)
            raise KeyboardInterrupt

    trials = Trials(space, Budget(), Interrupted(space, runner.loss, reverse=True), ScoreCache(None))
    with pytest.raises(KeyboardInterrupt):
        trials.evaluate([space.uniform(level) for level in space.levels])
    assert [trial.choice[0] for trial in trials.done.values()] == [1, 2, 3]
    assert trials.best is not None
    assert trials.best.choice in trials.done


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_in_which_scores_come_does_not_matter(strategy: str) -> None:
    space = make_space(units=10)
    found = [
        run(strategy, space, make_loss(space), reverse=reverse, max_bytes=budgets(space)[1], max_evaluations=90)
        for reverse in (False, True)
    ]
    assert list(found[0].done) == list(found[1].done)
    assert found[0].best == found[1].best


def test_searches_that_know_sensitivities_beat_random_maps() -> None:
    space = make_space(units=20)
    loss = make_loss(space)
    limit = budgets(space)[1]
    best = {}
    for strategy in STRATEGIES:
        trials = run(strategy, space, loss, max_bytes=limit, max_evaluations=120)
        assert trials.best is not None
        best[strategy] = trials.best.score.loss
    assert max(best["sensitivity"], best["expander"]) < min(best["evolution"], best["random"])
    assert best["evolution"] < best["random"]


def test_a_sum_is_solved_exactly_by_the_knapsack() -> None:
    from onebit.search.knapsack import best_choice

    generator = np.random.default_rng(3)
    for seed in range(4):
        space = make_space(units=5, seed=seed)
        cost_UL = generator.normal(size=(5, 4))
        for limit in budgets(space):
            fitting = [c for c in itertools.product(range(4), repeat=5) if space.size(c) <= limit]
            ranked = sorted(fitting, key=lambda c: float(cost_UL[np.arange(5), list(c)].sum()))
            assert best_choice(cost_UL, space, limit) == ranked[0]
            assert best_choice(cost_UL, space, limit, excluded=ranked[:2]) == ranked[2]
            near = best_choice(cost_UL, space, limit, near=(space.smallest, 1))
            close = [c for c in ranked if sum(a != b for a, b in zip(c, space.smallest, strict=True)) <= 1]
            assert near == close[0]
        assert best_choice(cost_UL, space, space.size(space.smallest) - 64) is None


def test_a_surrogate_learns_from_what_it_predicted_wrongly() -> None:
    before, after = [], []
    for seed in (0, 1, 2):
        space = make_space(units=12, seed=seed)
        loss = make_loss(space, seed, interaction=0.4)
        trials = run("random", space, loss, max_bytes=budgets(space)[2], max_evaluations=60)
        trials.budget = Budget(max_bytes=budgets(space)[2])
        surrogate = measure_around(trials, space.uniform("int8"))
        for unit in range(12):  # the terms are the single changes
            single = (*space.uniform("int8")[:unit], 0, *space.uniform("int8")[unit + 1 :])
            assert surrogate.predict(single) == pytest.approx(loss(single))
        random = [trial for trial in trials.done.values() if trials.fits(trial.choice)]
        known, unknown = random[::2], random[1::2]
        before.append(np.mean([abs(surrogate.predict(t.choice) - t.score.loss) for t in unknown]))
        surrogate.refit(known)
        after.append(np.mean([abs(surrogate.predict(t.choice) - t.score.loss) for t in unknown]))
    assert np.mean(after) < np.mean(before)


def test_few_evaluations_are_spent_on_what_curvature_calls_large() -> None:
    space = make_space(units=8)
    loss = make_loss(space)
    fine = space.uniform("int8")

    def estimate(base: Choice) -> np.ndarray:
        exact = np.array([[loss((*base[:u], i, *base[u + 1 :])) for i in range(4)] for u in range(8)]) - loss(base)
        return 3.0 * exact  # right up to a factor

    trials = Trials(space, Budget(max_evaluations=10), Computed(space, loss), ScoreCache(None), curvature=estimate)
    surrogate = measure_around(trials, fine)
    assert len(trials.done) == 10
    for unit, level in itertools.product(range(8), range(4)):
        single = (*fine[:unit], level, *fine[unit + 1 :])
        assert surrogate.predict(single) == pytest.approx(loss(single), abs=1e-9)
