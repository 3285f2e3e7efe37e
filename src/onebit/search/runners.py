"""Where maps are measured: in this process, in processes beside it, or on a Ray cluster. The scores are the same.

Each worker holds a whole `Evaluator` and computes with the same number of threads, so that sums have one order. What a
lost worker had not finished is measured again.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch

from onebit.errors import ConfigError, OnebitError
from onebit.search.evaluator import Evaluator, Score
from onebit.search.space import Levels

__all__ = ["InProcess", "LocalProcesses", "RayActors"]

OpenEvaluator = Callable[[], Evaluator]
_ATTEMPTS = 3  # pools in a row that broke without finishing anything


class InProcess:
    """One map after another, here."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def scores(self, maps: Sequence[Levels]) -> Iterator[tuple[int, Score]]:
        for index, levels in enumerate(maps):
            yield index, self.evaluator.score(levels)

    def close(self) -> None:
        pass


class LocalProcesses:
    """`workers` processes, each with the evaluator that `open_evaluator` makes there."""

    def __init__(self, open_evaluator: OpenEvaluator, workers: int, threads: int) -> None:
        self._arguments = (open_evaluator, threads)
        self._workers = workers
        self._pool = self._start()

    def scores(self, maps: Sequence[Levels]) -> Iterator[tuple[int, Score]]:
        left, failures = dict(enumerate(maps)), 0
        while left:
            before = len(left)
            try:
                futures = {self._pool.submit(_score, levels): index for index, levels in left.items()}
                for future in as_completed(futures):
                    score = future.result()
                    del left[futures[future]]
                    yield futures[future], score
            except BrokenProcessPool:
                failures = failures + 1 if len(left) == before else 1
                if failures >= _ATTEMPTS:
                    raise OnebitError(
                        f"the worker processes ended {failures} times before finishing an evaluation; they may lack "
                        "memory: give fewer --workers or --max-tokens"
                    ) from None
                self._pool = self._start()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers, mp_context=get_context("spawn"), initializer=_open, initargs=self._arguments
        )


_evaluator: Evaluator | None = None  # of a worker process


def _open(open_evaluator: OpenEvaluator, threads: int) -> None:
    global _evaluator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which ends its workers
    torch.set_num_threads(threads)
    _evaluator = open_evaluator()


def _score(levels: Levels) -> Score:
    assert _evaluator is not None  # the initializer ran
    return _evaluator.score(levels)


class RayActors:
    """`workers` actors on the Ray cluster at `address` ("local" starts one here).

    model, data: what `Evaluator` takes, sent through Ray's object store, so that no node needs the checkpoint's folder.
    """

    def __init__(self, address: str, workers: int, threads: int, model: Any, data: Any) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise ConfigError("--address needs Ray, which is not installed: pip install ray") from None
        self._ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        job = self._ray.put((model, data))
        # A lost actor is started again, and its task with it.
        actor = self._ray.remote(num_cpus=threads, max_restarts=-1, max_task_retries=-1)(_Actor)
        self._actors = [actor.remote(job, threads) for _ in range(workers)]

    def scores(self, maps: Sequence[Levels]) -> Iterator[tuple[int, Score]]:
        waiting = list(enumerate(maps))[::-1]
        running: dict[Any, tuple[int, Any]] = {}
        free = list(self._actors)
        while waiting or running:
            while waiting and free:
                index, levels = waiting.pop()
                actor = free.pop()
                running[actor.score.remote(levels)] = (index, actor)
            done, _ = self._ray.wait(list(running), num_returns=1)
            for reference in done:
                index, actor = running.pop(reference)
                free.append(actor)
                yield index, self._ray.get(reference)

    def close(self) -> None:
        self._ray.shutdown()


class _Actor:
    def __init__(self, job: tuple[Any, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluator = Evaluator(*job)

    def score(self, levels: Levels) -> Score:
        return self._evaluator.score(levels)
