"""Runners: a lost worker's evaluations are done again, no worker outlives its search, and Ray gives the same scores."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from onebit.errors import ConfigError, OnebitError
from onebit.search.evaluator import Evaluator, HeldOut
from onebit.search.opening import open_data, open_model
from onebit.search.runners import InProcess, LocalProcesses, RayActors
from onebit.search.score import Score
from onebit.search.settings import EvaluationSettings

MAPS = [{"a": level} for level in ("binary", "ternary", "int4", "int8", "float16")]


# A module of its own: worker processes must be able to import it.
WORKERS = """
import os
import time
from pathlib import Path

from onebit.search.score import Score

NOTE = Path(__file__).with_name("ended")
PROCESSES = Path(__file__).with_name("processes")


class Frail:
    \"\"\"An evaluator whose process ends at the third map, once.\"\"\"

    def score(self, levels):
        if levels["a"] == "int4" and not NOTE.exists():
            NOTE.touch()
            os._exit(1)
        return Score(float(len(levels["a"])), 0.5, 1)


class Slow:
    \"\"\"An evaluator that takes minutes from the second map on, and says which process it is in.\"\"\"

    def score(self, levels):
        if levels["a"] != "binary":
            PROCESSES.write_text(str(os.getpid()))
            time.sleep(200)
        return Score(1.0, 0.5, 1)
"""

KILLED = """
import os, signal, sys
from onebit.search.runners import LocalProcesses
import workers

if __name__ == "__main__":
    scores = LocalProcesses(workers.Slow, 1).scores([{"a": "binary"}, {"a": "int8"}])
    next(scores)
    while not workers.PROCESSES.exists():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "workers.py").write_text(WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("workers")
    del sys.modules["workers"]


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def is_gone(process: int) -> bool:
    """Ended, though perhaps nobody has asked for how."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return state.strip()[:1] in ("", "Z")


def test_what_a_lost_worker_had_is_measured_again(workers: Any) -> None:
    runner = LocalProcesses(workers.Frail, 1)
    found = dict(runner.scores(MAPS))
    runner.close()
    assert workers.NOTE.exists()
    assert found == {i: Score(float(len(told["a"])), 0.5, 1) for i, told in enumerate(MAPS)}


def test_workers_that_always_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def submit(self, *given: object) -> None:
            raise BrokenProcessPool

    started = []
    monkeypatch.setattr(LocalProcesses, "_start", lambda self: started.append(1) or Broken())
    with pytest.raises(OnebitError, match="fewer --workers"):
        list(LocalProcesses(dict, 1).scores(MAPS))  # type: ignore[arg-type]
    assert len(started) == 3


@pytest.mark.skipif(os.name != "posix", reason="looks at processes with ps")
def test_closing_does_not_wait_for_an_evaluation(workers: Any) -> None:
    runner = LocalProcesses(workers.Slow, 1)
    assert next(runner.scores([{"a": "binary"}, {"a": "int8"}]))[0] == 0
    wait_until(lambda: workers.PROCESSES.exists() and workers.PROCESSES.read_text() != "")
    began = time.monotonic()
    runner.close()
    assert time.monotonic() - began < 20  # not 200
    wait_until(lambda: is_gone(int(workers.PROCESSES.read_text())))


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal and looks at processes with ps")
def test_workers_end_when_their_search_is_killed(workers: Any, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run([sys.executable, tmp_path / "killed.py"], cwd=tmp_path, timeout=120)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: is_gone(int(workers.PROCESSES.read_text())))


class FakeRay(ModuleType):
    """As much of Ray as the runner uses; the second actor never gets a place in the cluster."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.told: dict[str, Any] = {}
        self.exceptions = SimpleNamespace(RayActorError=EOFError)
        self.actors = 0

    def init(self, **told: Any) -> None:
        if told["address"] == "nowhere":
            raise ConnectionError("no cluster there")
        self.told = told

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.told |= options

        def start(kind: type, *given: Any) -> Any:
            self.actors += 1
            made, is_up = kind(*given), self.actors == 1
            calls = {name: SimpleNamespace(remote=_call(getattr(made, name), is_up)) for name in ("ready", "score")}
            return SimpleNamespace(**calls)

        return lambda kind: SimpleNamespace(remote=lambda *given: start(kind, *given))

    def wait(self, references: Sequence[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        up = [reference for reference in references if reference.is_up]
        assert up, "waits for ever"
        return up[-num_returns:], []  # the last one first

    def get(self, reference: Any) -> Any:
        return reference.call()

    def shutdown(self) -> None:
        self.told["shut"] = True


class _Reference(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def _call(method: Callable[..., Any], is_up: bool) -> Callable[..., _Reference]:
    return lambda *given: _Reference(call=lambda: method(*given), is_up=is_up)


@pytest.fixture(scope="module")
def opened(checkpoint: Path, text: Path) -> tuple[Any, HeldOut]:
    settings = EvaluationSettings(checkpoint=checkpoint, val_data=text, max_tokens=128)
    model = open_model(settings)
    return model, open_data(settings, model)


@pytest.fixture
def maps(opened: tuple[Any, HeldOut]) -> list[dict[str, str]]:
    names = opened[0].config.module_names()
    return [dict.fromkeys(names, level) for level in ("binary", "ternary", "int4", "int8")]


def test_ray_actors_that_are_up_measure_everything(
    opened: tuple[Any, HeldOut], maps: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    expected = dict(InProcess(Evaluator(*opened)).scores(maps))
    runner = RayActors("auto", 2, 1, *opened)
    assert dict(runner.scores(maps)) == expected
    assert dict(runner.scores(maps[:1])) == {0: expected[0]}
    assert (ray.told["address"], ray.told["max_restarts"], ray.told["max_task_retries"]) == ("auto", -1, 3)

    def lost(reference: Any) -> None:
        raise EOFError("gone")

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(OnebitError, match="lost 4 times"):
        list(runner.scores(maps))
    runner.close()
    assert ray.told["shut"]


def test_a_cluster_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    with pytest.raises(ConfigError, match="--address nowhere: no cluster there"):
        RayActors("nowhere", 1, 1, None, None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install ray"):
        RayActors("auto", 1, 1, None, None)


def test_a_model_travels_whole(opened: tuple[Any, HeldOut], maps: list[dict[str, str]]) -> None:
    """What Ray does with the object it is given."""
    travelled = Evaluator(*pickle.loads(pickle.dumps(opened)))
    assert travelled.score(maps[2]) == Evaluator(*opened).score(maps[2])


@pytest.mark.slow
def test_ray_itself_gives_the_scores_of_this_process(
    opened: tuple[Any, HeldOut], maps: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    expected = dict(InProcess(Evaluator(*opened)).scores(maps))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="--address auto"):
        RayActors("auto", 1, 1, *opened)
    runner = RayActors("local", 2, 1, *opened)
    try:
        assert dict(runner.scores(maps)) == expected
        ray.kill(runner._free[0], no_restart=False)
        assert dict(runner.scores(maps)) == expected
    finally:
        runner.close()
