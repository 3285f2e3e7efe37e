"""The package's exceptions: one parent, so that a caller can catch everything onebit raises on purpose.

Each message says what was given, what was expected and what to do. The command line prints it as one line and
leaves with exit code 2; anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "EXTRAS",
    "ConfigError",
    "DataError",
    "EngineError",
    "FormatError",
    "MissingExtraError",
    "OnebitError",
    "missing_extra",
    "nearest_name",
]

# The modules each extra of pyproject.toml brings; a test compares the two.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "transformers", "accelerate", "datasets", "safetensors", "trl", "peft", "matplotlib"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "search": ("networkx", "scipy"),
    "formats": ("gguf", "huggingface_hub"),
    "eval": ("lm_eval",),
    "gpu": ("triton",),
}


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


class MissingExtraError(OnebitError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, extra: str, name: str) -> None:
        super().__init__(f"{name} needs the extra '{extra}': pip install 'onebit[{extra}]'")
        self.extra = extra
        self.name = name


def missing_extra(error: ModuleNotFoundError, name: str) -> MissingExtraError | None:
    """The error to raise instead when `name` failed on a module that an extra brings, None for any other module."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    return None if extra is None else MissingExtraError(extra, name)


def nearest_name(given: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string when none is close."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
