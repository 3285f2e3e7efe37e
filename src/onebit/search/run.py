"""A whole search: open everything, measure the uniform maps, let the strategy work, heal, write what was found."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from onebit import __version__
from onebit.errors import ConfigError, OnebitError
from onebit.models.bit_width_map import apply_bit_width_map
from onebit.search.cache import ScoreCache
from onebit.search.curvature import curvature_of
from onebit.search.evaluator import Evaluator
from onebit.search.heal import heal, healing_record
from onebit.search.opening import (
    checkpoint_fingerprint,
    checkpoint_folder,
    open_data,
    open_evaluator,
    open_model,
    texts_beside,
)
from onebit.search.progress import SearchProgress
from onebit.search.report import SearchResult, write_json_report, write_report
from onebit.search.runners import InProcess, LocalProcesses, RayActors
from onebit.search.score import Score
from onebit.search.settings import EvaluationSettings, SearchSettings
from onebit.search.space import LEVELS, Space, open_space
from onebit.search.trials import Budget, Exhausted, Runner, Strategy, Trials

__all__ = ["evaluate_map", "search"]

_CACHE = "evaluations.sqlite"
# Uniform maps are measured first, for comparison, when they are at most this share of the evaluations.
_UNIFORM_SHARE = 0.1


def search(settings: SearchSettings) -> SearchResult:
    """Find the map of least loss within the budget and write it; see `write_report` for the files.

    Ctrl-C ends the search and keeps the best map. Started again, no map is measured twice. Raises ConfigError at once
    for a budget below the smallest file, OnebitError when no map reaches --min-accuracy.
    """
    began = time.monotonic()
    torch.set_num_threads(settings.threads)
    model = open_model(settings)
    texts = texts_beside(settings)
    if settings.finetune_steps:
        texts["manifest"] = {**(texts["manifest"] or {}), **healing_record(settings)}
    space = open_space(model, levels=settings.levels, grouping=settings.units, **texts)
    budget = Budget(
        max_bytes=_bytes_of(settings.max_size_mb),
        min_accuracy=settings.min_accuracy,
        max_evaluations=settings.max_evaluations,
    )
    refuse_impossible(space, budget)
    fingerprint = checkpoint_fingerprint(checkpoint_folder(settings))
    trials, interrupted = _explored(settings, model, space, budget, fingerprint)
    if trials.best is None:
        raise KeyboardInterrupt if interrupted else _nothing_found(trials)
    float16 = open_space(model, levels=LEVELS, grouping=settings.units, **texts)
    result = SearchResult(
        settings=settings,
        trials=trials,
        best=trials.best,
        config=model.config,
        float16_bytes=float16.size(float16.uniform("float16")),
        seconds=time.monotonic() - began,
        interrupted=interrupted,
        checkpoint=fingerprint,
    )
    write_report(result)
    if not settings.finetune_steps or interrupted:
        return result
    healed = heal(settings, fingerprint, result.levels, budget.max_bytes)
    result = replace(result, healed=healed, interrupted=healed is None, seconds=time.monotonic() - began)
    write_json_report(result)
    return result


def _explored(
    settings: SearchSettings, model: Any, space: Space, budget: Budget, fingerprint: str
) -> tuple[Trials, bool]:
    """What the strategy measured, and whether Ctrl-C ended it."""
    data = open_data(settings, model)
    settings.folder.mkdir(exist_ok=True)
    settings.cache.mkdir(parents=True, exist_ok=True)
    # Another version may compute other losses.
    cache = ScoreCache(settings.cache / _CACHE, fingerprint, data.fingerprint, settings.device, __version__)
    progress = SearchProgress(settings)
    runner = open_runner(settings, model, data)
    trials = Trials(
        space,
        budget,
        runner,
        cache,
        seed=settings.seed,
        curvature=curvature_of(model, data, space),
        listener=progress,
    )
    try:
        with progress:
            _explore(trials, strategy_of(settings.strategy))
    except KeyboardInterrupt:
        return trials, True
    finally:
        runner.close()
        cache.close()
    return trials, False


def evaluate_map(settings: EvaluationSettings, levels: dict[str, str]) -> tuple[Score, int]:
    """The score of one map, and the bytes of its exported file; every matrix must have a level of the space."""
    torch.set_num_threads(settings.threads)
    model = open_model(settings)
    told = _expanded(model, levels)
    space = open_space(model, **texts_beside(settings))
    choice = space.choice_of(told)
    return Evaluator(model, open_data(settings, model)).score(space.map_of(choice)), space.size(choice)


def _expanded(model: Any, levels: dict[str, str]) -> dict[str, str]:
    """A map that may hold patterns as {module: level} of every module it gives a level."""
    apply_bit_width_map(model, levels)
    found = {name: model.config.level(name) for name in model.config.module_names()}
    if missing := [name for name, level in found.items() if level is None]:
        raise ConfigError(
            f"the map gives no level to {len(missing)} matrices ({', '.join(missing[:3])}, ...); give each, or a "
            f"pattern of their names, one of {', '.join(LEVELS)}"
        )
    return found


def refuse_impossible(space: Space, budget: Budget) -> None:
    """Raise ConfigError when no file of the space fits, naming the smallest that there is."""
    smallest = space.size(space.smallest)
    if budget.max_bytes is not None and smallest > budget.max_bytes:
        raise ConfigError(
            f"--max-size-mb is {budget.max_bytes / 1e6:.6g}, but the smallest file that --levels "
            f"{','.join(space.levels)} can give has {smallest:,} bytes: give at least {math.ceil(smallest / 100) / 1e4}"
        )


def open_runner(settings: SearchSettings, model: Any, data: Any) -> Runner:
    """Where the evaluations run."""
    if settings.address is not None:
        return RayActors(settings.address, settings.workers, settings.threads, model, data)
    if settings.workers > 1:
        told = {name: getattr(settings, name) for name in EvaluationSettings.__dataclass_fields__}
        return LocalProcesses(partial(open_evaluator, EvaluationSettings(**told)), settings.workers)
    return InProcess(Evaluator(model, data))


def strategy_of(name: str) -> Strategy:
    """The strategy of that name, imported when it is asked for."""
    if name == "sensitivity":
        from onebit.search.sensitivity import sensitivity

        return sensitivity
    if name == "expander":
        from onebit.search.expander import expander

        return expander
    if name == "evolution":
        from onebit.search.evolution import evolution

        return evolution
    from onebit.search.random_search import random_search

    return random_search


def _explore(trials: Trials, strategy: Strategy) -> None:
    try:
        if len(trials.space.levels) <= _UNIFORM_SHARE * trials.left:
            trials.evaluate([trials.space.uniform(level) for level in trials.space.levels])
        strategy(trials)
    except Exhausted:
        pass


def _nothing_found(trials: Trials) -> OnebitError:
    fitting = [trial for trial in trials.done.values() if trials.fits(trial.choice)]
    best = max(fitting, key=lambda trial: trial.score.accuracy)
    reached = f"the best has {best.score.accuracy:.4f} at {best.size / 1e6:.4f} MB"
    return OnebitError(
        f"none of {len(trials.done)} maps reaches --min-accuracy {trials.budget.min_accuracy} within the size: "
        f"{reached}; give more size or evaluations, or less accuracy"
    )


def _bytes_of(megabytes: float | None) -> int | None:
    return None if megabytes is None else math.floor(megabytes * 1e6 + 1e-6)
