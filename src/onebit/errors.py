"""The package's exceptions: one parent, so that a caller can catch everything onebit raises on purpose.

Each message says what was given, what was expected and what to do. The command line prints it as one line and
leaves with exit code 2; anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "EngineError",
    "FormatError",
    "MissingExtraError",
    "OnebitError",
    "nearest_name",
]


class OnebitError(ValueError):
    """Something the caller gave cannot be used; the message says how to mend it."""


class ConfigError(OnebitError):
    """A configuration key or value is unknown, out of range or contradicts another."""


class DataError(OnebitError):
    """Training or evaluation data is missing, empty or of the wrong shape."""


class FormatError(OnebitError):
    """A file is truncated, damaged, of another version or lies about its contents."""


class EngineError(OnebitError):
    """The C engine is not there or refused a request."""


class MissingExtraError(OnebitError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, extra: str, name: str) -> None:
        super().__init__(f"{name} needs the extra '{extra}': pip install 'onebit[{extra}]'")
        self.extra = extra
        self.name = name


def nearest_name(given: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string when none is close."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
