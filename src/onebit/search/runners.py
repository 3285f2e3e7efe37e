"""Where maps are measured: in this process, in processes beside it, or on a Ray cluster. The scores are the same.

Each worker holds a whole `Evaluator` and computes with the same number of threads, so that sums have one order. What a
lost worker had not finished is measured again.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from onebit.errors import ConfigError, OnebitError
from onebit.search.score import Score

if TYPE_CHECKING:
    from onebit.search.evaluator import Evaluator
    from onebit.search.space import Levels

__all__ = ["InProcess", "LocalProcesses", "RayActors"]

_START = "spawn"  # a process that runs threads, as torch does, must not be forked
_ATTEMPTS = 3  # losses of a worker in a row that are taken for chance


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

    def __init__(self, open_evaluator: Callable[[], Evaluator], workers: int) -> None:
        self._open_evaluator, self._workers = open_evaluator, workers
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
        """End the workers, whatever they are at."""
        workers = list((self._pool._processes or {}).values())  # Python 3.14 has terminate_workers for it
        for worker in workers:
            worker.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context(_START),
            initializer=_open,
            initargs=(self._open_evaluator,),
        )


_evaluator: Evaluator | None = None  # of a worker process


def _open(open_evaluator: Callable[[], Evaluator]) -> None:
    global _evaluator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which ends its workers
    threading.Thread(target=_end_with_search, daemon=True).start()
    _evaluator = open_evaluator()


def _end_with_search() -> None:
    """A search that is killed cannot end its workers; they would wait for work for ever."""
    search = multiprocessing.parent_process()
    assert search is not None  # this is a worker
    search.join()
    os._exit(1)


def _score(levels: Levels) -> Score:
    assert _evaluator is not None  # the initializer ran
    return _evaluator.score(levels)


class RayActors:
    """`workers` actors on the Ray cluster at `address` ("local" starts one here).

    model, data: what `Evaluator` takes, sent through Ray's object store, so that no node needs the checkpoint's folder;
    onebit itself must be installed on every node. An actor gets maps once it is up, so that a cluster with room for
    fewer of them, or one that is growing, works with those it has.
    """

    def __init__(self, address: str, workers: int, threads: int, model: Any, data: Any) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise ConfigError("--address needs Ray, which is not installed: pip install ray") from None
        self._connect(address)
        device = next(model.parameters()).device
        self._job = self._ray.put((model.cpu(), data))  # kept: an actor that starts again asks for it again
        model.to(device)
        needs = {"num_cpus": threads, "num_gpus": int(device.type == "cuda")}
        # A lost actor is started again, elsewhere if need be, and its task with it.
        kind = self._ray.remote(**needs, max_restarts=-1, max_task_retries=_ATTEMPTS)(_Actor)
        actors = [kind.remote(self._job, threads, device.type) for _ in range(workers)]
        self._starting = {actor.ready.remote(): actor for actor in actors}
        self._free: list[Any] = []

    def scores(self, maps: Sequence[Levels]) -> Iterator[tuple[int, Score]]:
        waiting = list(enumerate(maps))[::-1]
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and self._free:
                index, levels = waiting.pop()
                actor = self._free.pop()
                running[actor.score.remote(levels)] = (index, actor)
            done, _ = self._ray.wait([*running, *(self._starting if waiting else ())], num_returns=1)
            for reference in done:
                result = self._result(reference)
                if reference in self._starting:
                    self._free.append(self._starting.pop(reference))
                else:
                    index, actor = running.pop(reference)
                    self._free.append(actor)
                    yield index, result

    def close(self) -> None:
        self._ray.shutdown()

    def _connect(self, address: str) -> None:
        here: dict[str, Any] = {}
        if address == "local":
            here = {"include_dashboard": False}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent that was not asked for
        try:
            self._ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, **here)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"--address {address}: {error}") from None

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            raise OnebitError(
                f"a Ray actor was lost {_ATTEMPTS + 1} times over the same evaluation ({error}); it may lack memory: "
                "give fewer --workers or --max-tokens"
            ) from None


class _Actor:
    def __init__(self, job: tuple[Any, Any], threads: int, device: str) -> None:
        import torch

        from onebit.search.evaluator import Evaluator

        torch.set_num_threads(threads)
        model, data = job
        self._evaluator = Evaluator(model.to(device), data)

    def ready(self) -> None:
        """Answers once the actor is up."""

    def score(self, levels: Levels) -> Score:
        return self._evaluator.score(levels)
