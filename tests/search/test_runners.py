"""Runners: a lost worker's evaluations are done again, and Ray is asked for what it can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onebit.errors import ConfigError, OnebitError
from onebit.search import runners
from onebit.search.evaluator import Evaluator, Score
from onebit.search.opening import open_data, open_evaluator, open_model
from onebit.search.runners import InProcess, LocalProcesses, RayActors
from onebit.search.settings import EvaluationSettings

MAPS = [{"a": level} for level in ("binary", "ternary", "int4", "int8", "float16")]


class Frail:
    """An evaluator whose process ends at the third map, as often as a file says."""

    def __init__(self, lives: Path) -> None:
        self.lives = lives

    def score(self, levels: dict[str, str]) -> Score:
        if levels["a"] == "int4" and len(self.lives.read_text()) < 1:
            self.lives.write_text("x")
            os._exit(1)
        return Score(float(len(levels["a"])), 0.5, 1)


class Dead(Frail):
    def score(self, levels: dict[str, str]) -> Score:
        os._exit(1)


def open_frail(kind: type[Frail], lives: Path) -> Any:
    return kind(lives)


def test_what_a_lost_worker_had_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / "lives").write_text("")
    runner = LocalProcesses(partial(open_frail, Frail, tmp_path / "lives"), 1, 1)
    found = dict(runner.scores(MAPS))
    runner.close()
    assert (tmp_path / "lives").read_text() == "x"
    assert found == {i: Score(float(len(told["a"])), 0.5, 1) for i, told in enumerate(MAPS)}


def test_workers_that_always_end_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_ATTEMPTS", 1)
    runner = LocalProcesses(partial(open_frail, Dead, tmp_path), 1, 1)
    with pytest.raises(OnebitError, match="fewer --workers"):
        list(runner.scores(MAPS))


class FakeRay(ModuleType):
    """As much of Ray as the runner uses, with objects that are references to themselves."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.told: dict[str, Any] = {}

    def init(self, **told: Any) -> None:
        self.told = told

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.told |= options

        class Method:
            def __init__(self, method: Callable[..., Any]) -> None:
                self.method = method

            def remote(self, *arguments: Any) -> list[Any]:
                return _Reference([self.method, arguments])

        class Handle:
            def __init__(self, made: Any) -> None:
                self.score = Method(made.score)

        def wrap(kind: type) -> Any:
            return type("Actor", (), {"remote": staticmethod(lambda *given: Handle(kind(*given)))})

        return wrap

    def wait(self, references: Sequence[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return list(references)[-num_returns:], list(references)[:-num_returns]  # the last one first

    def get(self, reference: Any) -> Any:
        method, arguments = reference
        return method(*arguments)

    def shutdown(self) -> None:
        self.told["shut"] = True


class _Reference(list[Any]):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_ray_actors_give_the_scores_of_this_process(
    checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    settings = EvaluationSettings(checkpoint=checkpoint, val_data=text, max_tokens=128)
    model = open_model(settings)
    data = open_data(settings, model)
    maps = [dict.fromkeys(model.config.module_names(), level) for level in ("binary", "int8", "int4")]
    expected = dict(InProcess(open_evaluator(settings)).scores(maps))
    runner = RayActors("auto", 2, 1, model, data)
    assert dict(runner.scores(maps)) == expected
    assert (ray.told["address"], ray.told["max_restarts"], ray.told["max_task_retries"]) == ("auto", -1, -1)
    runner.close()
    assert ray.told["shut"]


def test_a_model_travels_whole(checkpoint: Path, text: Path) -> None:
    """What Ray does with the object it is given."""
    import pickle

    settings = EvaluationSettings(checkpoint=checkpoint, val_data=text, max_tokens=128)
    model = open_model(settings)
    data = open_data(settings, model)
    levels = dict.fromkeys(model.config.module_names(), "int4")
    travelled = Evaluator(*pickle.loads(pickle.dumps((model, data))))
    assert travelled.score(levels) == Evaluator(model, data).score(levels)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install ray"):
        RayActors("auto", 1, 1, None, None)
