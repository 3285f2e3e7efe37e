"""Runners: a lost worker's evaluations are done again, and Ray is asked for what it can do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onebit.errors import ConfigError, OnebitError
from onebit.search.evaluator import Evaluator, Score
from onebit.search.opening import open_data, open_evaluator, open_model
from onebit.search.runners import InProcess, LocalProcesses, RayActors
from onebit.search.settings import EvaluationSettings

MAPS = [{"a": level} for level in ("binary", "ternary", "int4", "int8", "float16")]


# A module of its own: worker processes must be able to import it.
FRAIL = """
import os
from pathlib import Path

from onebit.search.evaluator import Score

NOTE = Path(__file__).with_name("ended")


class Frail:
    \"\"\"An evaluator whose process ends at the third map, once.\"\"\"

    def score(self, levels):
        if levels["a"] == "int4" and not NOTE.exists():
            NOTE.touch()
            os._exit(1)
        return Score(float(len(levels["a"])), 0.5, 1)
"""


@pytest.fixture
def frail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "frail_workers.py").write_text(FRAIL)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("frail_workers")
    del sys.modules["frail_workers"]


def test_what_a_lost_worker_had_is_measured_again(frail: Any) -> None:
    runner = LocalProcesses(frail.Frail, 1, 1)
    found = dict(runner.scores(MAPS))
    runner.close()
    assert frail.NOTE.exists()
    assert found == {i: Score(float(len(told["a"])), 0.5, 1) for i, told in enumerate(MAPS)}


def test_workers_that_always_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def submit(self, *given: object) -> None:
            raise BrokenProcessPool

    started = []
    monkeypatch.setattr(LocalProcesses, "_start", lambda self: started.append(1) or Broken())
    with pytest.raises(OnebitError, match="fewer --workers"):
        list(LocalProcesses(dict, 1, 1).scores(MAPS))  # type: ignore[arg-type]
    assert len(started) == 3


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
