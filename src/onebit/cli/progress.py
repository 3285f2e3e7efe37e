"""Progress of anything that takes more than two seconds: one line on stderr, rewritten on a terminal."""

from __future__ import annotations

import sys
import time

__all__ = ["ProgressLine"]


class ProgressLine:
    """Call it with (done, total). Quiet for two seconds after the first call; not on a terminal, a line every ten."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._first: tuple[float, int] | None = None  # when it was called first, and what was done by then
        self._written = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total:
            self.clear()
            return
        if self._first is None:
            self._first = (now, done)  # what came before (opening a model) says nothing about the pace
            self._next = now + 2.0
        began, before = self._first
        if now >= self._next and done > before:
            self._next = now + (0.2 if self._terminal else 10.0)
            left = (now - began) / (done - before) * (total - done)
            line = f"{self._what}: {done / total:4.0%} of {total} {self._unit}, {left:.0f} s left"
            sys.stderr.write(f"\r{line}\033[K" if self._terminal else f"{line}\n")
            sys.stderr.flush()
            self._written = True

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self._written and self._terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._written = False
