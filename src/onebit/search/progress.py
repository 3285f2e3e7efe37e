"""A search on the terminal: a bar with the evaluations and the best map so far; elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from onebit.search.settings import SearchSettings
from onebit.search.trials import Trials

__all__ = ["SearchProgress"]

_SECONDS = 10.0


class SearchProgress:
    """Call it with the trials after each choice; a context manager that takes the bar away at the end."""

    def __init__(self, settings: SearchSettings) -> None:
        self._quiet = settings.quiet
        self._total, self._name = settings.max_evaluations, settings.strategy
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._next = time.monotonic() + _SECONDS

    def __enter__(self) -> SearchProgress:
        if self._console.is_terminal and not self._quiet:
            self._bar = Progress(
                TextColumn(self._name),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, line="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, trials: Trials) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trials.seen, line=_line(trials))
        elif not self._quiet and time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS
            self._console.print(f"{self._name}: {trials.seen} of at most {self._total} evaluations, {_line(trials)}")


def _line(trials: Trials) -> str:
    if trials.best is None:
        return "none fits yet"
    return f"best loss {trials.best.score.loss:.4f} at {trials.best.size / 1e6:.3f} MB"
