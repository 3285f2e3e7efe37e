"""The thread that makes the engine's steps, and how coroutines ask it.

One thread calls ``Batch.step``; coroutines submit and wait for events, which cross over through the event loop. A
request whose reader goes away is cancelled at the next step, and its slot is free for another.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from onebit.engine import Batch, Event, Request

__all__ = ["Answer", "EngineStopped", "EngineWorker", "QueueFull"]

_LOG = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many requests wait as may."""


class EngineStopped(Exception):
    """The engine takes no requests: it failed, or the server is going down."""


class EngineWorker:
    """Runs `batch` in a thread of its own. max_open: requests that may be open at once, those in slots included."""

    def __init__(self, batch: Batch, max_open: int) -> None:
        self.batch, self.max_open = batch, max_open
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._open: dict[Request, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Event | None]]] = {}
        self._thread = threading.Thread(target=self._run, name="onebit-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self, seconds: float) -> None:
        """Let open requests end for so long, then cancel them, and end the thread."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._open and self.is_healthy and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)

    @property
    def is_healthy(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and self._failure is None and not self._stopping.is_set()

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def submit(self, prompt: Sequence[int], **options: Any) -> Answer:
        """Queue a request; options as of `Batch.submit`. Call it in the event loop.

        Raises QueueFull, EngineStopped, and EngineError for what the model cannot do.
        """
        if not self.is_healthy:
            raise EngineStopped("the engine has stopped" if self._failure else "the server is going down")
        if self.num_open >= self.max_open:
            raise QueueFull(f"{self.num_open} requests are open, {self.max_open} may be; try again later")
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
        request = self.batch.submit(prompt, on_event=lambda event: _tell(loop, queue, event), **options)
        self._open[request] = loop, queue
        return Answer(self, request, queue)

    def forget(self, request: Request) -> None:
        """Nobody reads it any more; cancelled if it is still being made."""
        if self._open.pop(request, None) is not None and request.stats.stopped_by is None:
            request.cancel()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self.batch.wait(0.1):
                    self.batch.step()
        except Exception as problem:  # whatever it is, nobody may wait for ever
            self._failure = problem
            _LOG.exception("the engine failed")
        for loop, queue in list(self._open.values()):
            _tell(loop, queue, None)


class Answer:
    """Events of one request, until it ends; leave it with `close`, or use it as an async context."""

    def __init__(self, worker: EngineWorker, request: Request, queue: asyncio.Queue[Event | None]) -> None:
        self.request = request
        self._worker, self._queue = worker, queue

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._queue.get()
            if event is None:
                raise EngineStopped("the engine stopped before the answer was whole")
            yield event
            if event.stopped_by is not None:
                return

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the request unless it has ended."""
        self._worker.forget(self.request)


def _tell(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Event | None], event: Event | None) -> None:
    try:
        loop.call_soon_threadsafe(queue.put_nowait, event)
    except RuntimeError:  # the loop is closed: nobody reads
        if event is not None:
            event.request.cancel()
